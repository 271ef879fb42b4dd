"""Twins: pairs of clips with the same sounds in another order, and how often a caption finds its own clip."""

from collections.abc import Iterable, Mapping, Sequence

import torch

from atk.eval.embed import ClipEmbedding, EmbeddingModel, embed_tokens, evaluating
from atk.eval.scores import Score, similarities


@torch.no_grad()
def score_twins(
    model: EmbeddingModel,
    clips: Mapping[str, ClipEmbedding],
    captions: Mapping[str, Sequence[str]],
    pairs: Iterable[tuple[str, str]],
) -> dict[str, float]:
    """How often a caption scores its own clip above the clip's twin; ties count as errors.

    Args:
        model: embeds the captions.
        clips: embedded clips by file name.
        captions: captions of each clip, by file name. A caption that both twins share is not scored.
        pairs: file names of each pair of twins.

    Returns:
        `"global"`: percentage of captions that are right by global cosine; `"max_mean"`: by frame-token similarity
        (3.6); both are NaN without captions; `"pairs"`: number of pairs; `"captions"`: number of captions scored.
    """
    right: dict[Score, int] = {"global": 0, "max_mean": 0}
    caption_count = 0
    pair_count = 0
    with evaluating(model):
        for pair in pairs:
            first, second = (dict.fromkeys(captions[name]) for name in pair)
            first_only = [text for text in first if text not in second]
            second_only = [text for text in second if text not in first]
            pair_count += 1
            if not first_only and not second_only:
                continue
            clip = torch.tensor([0] * len(first_only) + [1] * len(second_only))[None]  # of each caption
            caption_count += clip.shape[1]
            texts = embed_tokens(model, [*first_only, *second_only])
            for name in right:
                score = similarities([clips[file] for file in pair], texts, name)  # [2, captions]
                right[name] += int((score.gather(0, clip) > score.gather(0, 1 - clip)).sum())
    percent = {name: 100 * count / caption_count if caption_count else float("nan") for name, count in right.items()}
    return percent | {"pairs": pair_count, "captions": caption_count}
