"""Scores of clips for the tags of a data folder: the similarity of the clip and a prompt for the tag."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from atk.data.side_files import read_tags


class TagScores(NamedTuple):
    """Similarity `scores [N, T]` and boolean `labels [N, T]` of the N clips `files` in tags.csv, for T `tags`."""

    files: list[str]
    tags: list[str]
    scores: Tensor
    labels: Tensor


def prompts_from(template: str) -> Callable[[str], str]:
    """The prompt for a tag, in which `{tag}` of the template is replaced by the tag with spaces for underscores.

    Raises:
        ValueError: the template does not contain `{tag}`.
    """
    if "{tag}" not in template:
        raise ValueError(f"template must contain {{tag}}, got {template!r}")
    return lambda tag: template.replace("{tag}", tag.replace("_", " "))


def tag_scores(
    folder: Path,
    files: Sequence[str],
    similarity: Callable[[list[str]], Tensor],
    prompt: Callable[[str], str],
    vocabulary: str | None = None,
) -> TagScores:
    """Score clips for each tag of a data folder.

    Args:
        folder: data folder with a tags.csv.
        files: file names of N_a clips.
        similarity: the similarity `[N_a, T]` of the clips and T texts.
        prompt: the text for a tag.
        vocabulary: name of the vocabulary, as for `atk.data.side_files.read_tags`.

    Raises:
        ValueError: tags.csv is missing or malformed, or lists none of the clips.
    """
    tags, labels = read_tags(folder / "tags.csv", vocabulary)
    rows = [row for row, name in enumerate(files) if name in labels]
    if not rows:
        raise ValueError(f"{folder / 'tags.csv'} names none of the {len(files)} clips of the split")
    scores = similarity([prompt(tag) for tag in tags])[rows]
    listed = [files[row] for row in rows]
    return TagScores(listed, tags, scores, torch.tensor([labels[name] for name in listed]))
