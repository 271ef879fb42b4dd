"""MixGen: pairs of clips and captions that are mixed to new pairs, which augments contrastive training."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F

from atk.data.captions import Clip
from atk.data.dataset import TrainDataset, random_stream
from atk.data.texts import TagSampling


class MixGenDataset(TrainDataset):
    """AL-MixGen (Kim et al. 2022): some clips become `(x + y) / 2` with another clip y, and their captions "X and Y".

    All draws are a function of (seed, epoch, clip) alone; clip, crop, and caption are those of `TrainDataset`, and so
    are those of the other clip. A mixture is as long as the longer of both.

    Args:
        clips: at least two.
        sample_rate, clip_seconds, seed, tag_sampling: as in `TrainDataset`.
        rate: fraction of the clips that are mixed with another one.

    Raises:
        ValueError: there are fewer than two clips, or `rate` is not in [0, 1].
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        sample_rate: int,
        clip_seconds: float,
        seed: int = 0,
        *,
        rate: float,
        tag_sampling: TagSampling | None = None,
    ):
        super().__init__(clips, sample_rate, clip_seconds, seed, tag_sampling=tag_sampling)
        if not 0 <= rate <= 1:
            raise ValueError(f"rate must be in [0, 1], got {rate}")
        if len(clips) < 2:
            raise ValueError(f"clips must hold at least two clips to mix, got {len(clips)}")
        self.rate = rate

    def __getitem__(self, index: tuple[int, int]) -> dict[str, Any]:
        """Load the item of `TrainDataset`, mixed or not; raises AudioError, which names the file, for either clip."""
        row, epoch = index
        item = super().__getitem__(index)
        random = random_stream(11, self.seed, epoch, row)
        if random.random() >= self.rate:
            return item
        other = super().__getitem__(((row + int(random.integers(1, len(self)))) % len(self), epoch))
        samples = max(len(item["audio"]), len(other["audio"]))
        first, second = (F.pad(audio, (0, samples - len(audio))) for audio in (item["audio"], other["audio"]))
        return item | {"audio": (first + second) / 2, "caption": f"{item['caption']} and {other['caption']}"}
