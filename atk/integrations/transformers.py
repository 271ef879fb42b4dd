"""transformers: the aligned loss on a `ClapModel`, for `Trainer`, Accelerate, and plain loops.

`AlignedClap(model)` returns the loss from `forward`. `ClapCollator(processor)` makes its inputs from rows of audio and
captions, and `AlignedTrainer` refuses the settings of `Trainer` that break contrastive learning.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atk.distributed import ddp_factor
from atk.integrations.rebinding import import_library
from atk.nn import AlignedContrastiveLoss
from atk.ops.checks import strings

__all__ = ["AlignedClap", "AlignedTrainer", "ClapCollator"]  # noqa: F822 (one is defined on first use)


class AlignedClap(nn.Module):
    """A `transformers.ClapModel` with the aligned loss (3.7) on its global vectors, frames, and tokens.

    Args:
        clap: the ClapModel, which is trained in place; its two logit scales are frozen.
        criterion: the loss. None: `AlignedContrastiveLoss` with a learned temperature that starts at that of `clap`.
        max_samples: samples of the feature extractor's input, its `nb_max_samples`.

    With `gather=` in the criterion, the loss of each rank is scaled for DDP and FSDP, which average gradients.
    """

    accepts_loss_kwargs = False  # Trainer divides the loss by the number of accumulated batches
    clap: Any

    def __init__(self, clap: Any, criterion: AlignedContrastiveLoss | None = None, *, max_samples: int = 480_000):
        super().__init__()
        self.clap = clap
        self.max_samples = max_samples
        if criterion is None:
            criterion = AlignedContrastiveLoss(clap.logit_scale_a.detach().neg().exp().item(), learnable=True)
        self.criterion = criterion
        for scale in self._scales():
            scale.requires_grad_(False)  # DDP would wait for their gradients

    @property
    def config(self) -> Any:
        """The configuration of the ClapModel."""
        return self.clap.config

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """As in the ClapModel."""
        self.clap.gradient_checkpointing_enable(**options)

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Save the ClapModel with the temperature of the criterion, as `ClapModel.save_pretrained` does."""
        for scale in self._scales():
            scale.data.copy_(self.criterion.logit_scale.log())
        self.clap.save_pretrained(folder, **options)

    def embed(
        self,
        input_ids: Tensor,
        input_features: Tensor,
        attention_mask: Tensor | None = None,
        is_longer: Tensor | None = None,
        lengths: Tensor | None = None,
        special_tokens_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Global vectors, frames, and tokens in the shared space, not normalized: the arguments of the criterion.

        Args:
            input_ids, attention_mask: `[N, L_t]` from the tokenizer.
            input_features, is_longer: `[N, C, T, mel_bins]` and `[N, 1]` from the feature extractor.
            lengths: valid samples of each clip `[N]`, integer. The feature extractor repeats short clips, and only the
                frames of the first repetition, at least one, are valid. None: all frames are valid.
            special_tokens_mask: `[N, L_t]`, 1 for the tokens that take no part in the alignment. None: padding, begin,
                and end of the text, by their ids in the configuration.

        Returns:
            `audio`, `text` `[N, D]`; `frames` `[N, L_a, D]`, `tokens` `[N, L_t, D]`; boolean `frame_mask` and
            `token_mask`.
        """
        audio = self.clap.audio_model(input_features=input_features, is_longer=is_longer)
        text = self.clap.text_model(input_ids=input_ids, attention_mask=attention_mask)
        frames = audio.last_hidden_state.mean(2).transpose(1, 2)  # [N, C, bands, L_a] -> [N, L_a, C]
        steps = torch.arange(frames.shape[1], device=frames.device)
        valid = len(steps) if lengths is None else (lengths * len(steps) // self.max_samples).clamp(min=1)[:, None]
        return {
            "audio": self.clap.audio_projection(audio.pooler_output),
            "text": self.clap.text_projection(text.pooler_output),
            "frames": self.clap.audio_projection(frames),
            "tokens": self.clap.text_projection(text.last_hidden_state),
            "frame_mask": (steps < valid).expand(frames.shape[:2]),
            "token_mask": self._token_mask(input_ids, attention_mask, special_tokens_mask),
        }

    def forward(
        self,
        input_ids: Tensor,
        input_features: Tensor,
        attention_mask: Tensor | None = None,
        is_longer: Tensor | None = None,
        lengths: Tensor | None = None,
        special_tokens_mask: Tensor | None = None,
        return_loss: bool = True,
    ) -> dict[str, Tensor]:
        """The loss, a scalar in float32, as `loss`, unless `return_loss` is False, and the output of `embed`.

        `audio_embeds` and `text_embeds`, of unit length, take the place of `audio` and `text`.

        Raises:
            ValueError, TypeError: as in `AlignedContrastiveLoss`.
        """
        values = self.embed(input_ids, input_features, attention_mask, is_longer, lengths, special_tokens_mask)
        outputs = {}
        if return_loss:
            factor = 1 if self.criterion.gather is None else ddp_factor()
            outputs["loss"] = self.criterion(**values) * factor
        outputs |= {f"{side}_embeds": F.normalize(values.pop(side), dim=-1) for side in ("audio", "text")}
        return outputs | values

    def _scales(self) -> tuple[nn.Parameter, nn.Parameter]:
        return self.clap.logit_scale_a, self.clap.logit_scale_t

    def _token_mask(self, input_ids: Tensor, attention_mask: Tensor | None, special: Tensor | None) -> Tensor:
        if special is None:
            text = self.config.text_config
            ids = [index for index in (text.pad_token_id, text.bos_token_id, text.eos_token_id) if index is not None]
            special = torch.isin(input_ids, torch.tensor(ids, device=input_ids.device))
        valid = ~special.bool()
        return valid if attention_mask is None else valid & attention_mask.bool()


class ClapCollator:
    """Makes the inputs of `AlignedClap` from rows with audio and a caption.

    Args:
        processor: a `ClapProcessor`, or anything with its `feature_extractor` and `tokenizer`.
        audio: column with the clip: samples at the rate of the feature extractor, or a dictionary with `array` and
            `sampling_rate`, as in the `datasets` library.
        text: column with the caption.
    """

    def __init__(self, processor: Any, audio: str = "audio", text: str = "caption"):
        self.processor = processor
        self.audio = audio
        self.text = text

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The batch of N rows, as in `AlignedClap.embed`.

        Raises:
            ValueError: a clip has another sample rate or is not mono.
            TypeError: a caption is not a string.
        """
        extractor, captions = self.processor.feature_extractor, [row[self.text] for row in rows]
        strings(self.text, captions)
        clips = [self._samples(row[self.audio], extractor.sampling_rate) for row in rows]
        features = extractor(clips, sampling_rate=extractor.sampling_rate, return_tensors="pt")
        tokens = self.processor.tokenizer(
            captions, padding=True, truncation=True, return_special_tokens_mask=True, return_tensors="pt"
        )
        names = ("input_ids", "attention_mask", "special_tokens_mask")
        lengths = torch.tensor([len(clip) for clip in clips]).clamp(max=extractor.nb_max_samples)
        return {**features, **{name: tokens[name] for name in names}, "lengths": lengths}

    def _samples(self, clip: Any, rate: int) -> np.ndarray:
        if isinstance(clip, Mapping):
            if clip["sampling_rate"] != rate:
                raise ValueError(f"{self.audio} must be sampled at {rate} Hz, got {clip['sampling_rate']} Hz")
            clip = clip["array"]
        samples = np.asarray(clip)
        if samples.ndim != 1:
            raise ValueError(f"{self.audio} must be mono, of shape [S], got {list(samples.shape)}")
        return samples


@functools.cache
def _aligned_trainer() -> type:
    import_library("accelerate")  # Trainer needs it
    library = import_library("transformers")

    class AlignedTrainer(library.Trainer):
        """`transformers.Trainer` for models that return a contrastive loss, such as `AlignedClap`.

        The loss is averaged over accumulated batches, each of which is contrasted by itself. It comes from `forward`,
        and so from within autocast under `bf16` or `fp16`.

        Raises:
            ValueError: a setting would drop the columns that the collator needs, collect the embeddings of a whole
                evaluation, or replace the loss.
        """

        loss_is_scaled_for_ga = False

        def __init__(self, model: nn.Module, args: Any, **options: Any):
            for name, wanted in (("remove_unused_columns", False), ("prediction_loss_only", True)):
                if getattr(args, name) is not wanted:
                    raise ValueError(f"args.{name} must be {wanted} for AlignedTrainer, got {getattr(args, name)}")
            if options.get("compute_loss_func") is not None or args.label_smoothing_factor:
                raise ValueError(
                    "AlignedTrainer takes the loss from the model: no compute_loss_func, no label smoothing"
                )
            super().__init__(model, args, **options)

        def compute_loss(
            self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            outputs = model(**inputs)
            return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    AlignedTrainer.__module__, AlignedTrainer.__qualname__ = __name__, "AlignedTrainer"
    return AlignedTrainer


def __getattr__(name: str) -> Any:
    if name == "AlignedTrainer":
        return _aligned_trainer()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
