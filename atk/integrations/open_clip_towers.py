"""open_clip's CLAP (its repository has it, releases up to 3.3.0 do not): frames, tokens, and the aligned loss.

`CLAPTask(clap, loss=AlignedClipLoss(clap, special_ids))` trains with both losses. `Towers` gives the embeddings for a
loop of your own.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atk.distributed import aligned_info_nce, ddp_factor
from atk.integrations import open_clip

__all__ = ["AlignedClipLoss", "Towers"]

HTSAT_REPEAT = 32  # HTS-AT repeats each of its frames this many times, to match the rate of the spectrogram


class Capture:
    """Hooks that project frames and tokens into the shared space whenever the towers of a CLAP run.

    Args:
        clap: an open_clip CLAP with an HTS-AT and a Hugging Face text tower; it is not changed.
        special_ids: ids of padding, `<s>`, `</s>`, and other special tokens, which would match every frame.
    """

    def __init__(self, clap: Any, special_ids: Sequence[int]):
        self.special_ids = torch.tensor(special_ids)
        self._values: dict[str, Tensor] = {}

        # The projections run here, inside of the model's `forward`, where DDP expects all uses of its parameters.
        def keep_frames(_: nn.Module, __: Any, output: Any) -> None:
            if "fine_grained_embedding" not in output:
                raise ValueError("clap must have an HTS-AT audio tower, whose output has fine_grained_embedding")
            frames = output["fine_grained_embedding"][:, ::HTSAT_REPEAT]
            if clap.audio.pre_norm:  # the tower normalizes before it projects
                frames = F.normalize(frames, dim=-1)
            self._values["frames"] = clap.audio.proj(frames)

        def keep_tokens(_: nn.Module, arguments: Any, options: dict[str, Any], output: Any) -> None:
            input_ids = options["input_ids"] if "input_ids" in options else arguments[0]
            self._values["tokens"] = clap.text.proj(output.last_hidden_state)
            self._values["token_mask"] = ~torch.isin(input_ids, self.special_ids.to(input_ids.device))

        clap.audio.encoder.register_forward_hook(keep_frames)
        clap.text.transformer.register_forward_hook(keep_tokens, with_kwargs=True)

    def pop(self) -> dict[str, Tensor]:
        """`frames` `[N, L_a, D]`, `tokens` `[N, L_t, D]`, and boolean `token_mask` of the latest batch.

        Raises:
            RuntimeError: a tower has not run since the last call.
        """
        if len(self._values) < 3:
            raise RuntimeError("both towers of the CLAP must run before each call of the loss")
        values, self._values = self._values, {}
        return values


class Towers(nn.Module):
    """Global vectors, frames, and tokens of an open_clip CLAP; arguments as in `Capture`."""

    clap: Any

    def __init__(self, clap: Any, special_ids: Sequence[int]):
        super().__init__()
        self.clap = clap
        self._capture = Capture(clap, special_ids)

    def forward(self, waveforms: Tensor, input_ids: Tensor) -> dict[str, Tensor]:
        """Inputs of `atk.nn.AlignedContrastiveLoss` for waveforms `[N, S]` and the token ids of captions `[N, L_t]`."""
        audio, text = self.clap.encode_audio({"waveform": waveforms}), self.clap.encode_text(input_ids)
        return {"audio": audio, "text": text, **self._capture.pop()}


class AlignedClipLoss(nn.Module):
    """open_clip's contrastive loss plus the aligned loss, both with the model's logit scale: `loss` of a `CLAPTask`.

    Args:
        clap, special_ids: as in `Capture`.
        weight: of the aligned loss.
        direction: as in `atk.aligned_info_nce`.
        gather: as in `atk.distributed.aligned_info_nce`; the loss is scaled for DDP, which averages gradients.
        options: of open_clip's `ClipLoss`.
    """

    def __init__(
        self,
        clap: Any,
        special_ids: Sequence[int],
        *,
        weight: float = 1.0,
        direction: str = "audio",
        gather: str | None = None,
        **options: Any,
    ):
        super().__init__()
        self.contrastive = open_clip.ClipLoss(**options)
        self.weight = weight
        self.direction = direction
        self.gather = gather
        self._capture = Capture(clap, special_ids)

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """`contrastive_loss` and the weighted `aligned_loss`, or their sum; arguments as in open_clip's `ClipLoss`.

        Raises:
            RuntimeError: the embeddings are not those of the latest batch, as under open_clip's `--accum-freq`.
            ValueError, TypeError: as in `atk.aligned_info_nce`.
        """
        values = self._capture.pop()
        if len(values["frames"]) != len(image_features):
            raise RuntimeError(
                f"the aligned loss needs the frames of all {len(image_features)} clips, but the latest batch has "
                f"{len(values['frames'])}; set --accum-freq 1"
            )
        losses = self.contrastive(image_features, text_features, logit_scale, logit_bias, output_dict=True)
        aligned = aligned_info_nce(
            values["frames"], values["tokens"], logit_scale, None, values["token_mask"], gather=self.gather,
            reduction="mean", normalize=True, direction=self.direction,
        )  # fmt: skip
        factor = 1 if self.gather is None else ddp_factor()
        losses["aligned_loss"] = self.weight * factor * aligned
        return losses if output_dict else losses["contrastive_loss"] + losses["aligned_loss"]
