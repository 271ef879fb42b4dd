"""open_clip: `ClipLoss` without the N x N logits.

`install()` makes `open_clip.create_loss`, and so its training script, return this loss. `ClipLoss(...)` creates one.
"""

import functools
from typing import Any

from torch import Tensor

from atk.integrations.rebinding import Rebinding, Replacements, import_library
from atk.ops.info_nce import info_nce

__all__ = ["ClipLoss", "install", "uninstall"]  # noqa: F822 (one is defined on first use)

VERSIONS = ("3.0.0", "3.1.0", "3.2.0", "3.3.0")


@functools.cache
def _clip_loss() -> type:
    library = import_library("open_clip.loss")

    class ClipLoss(library.ClipLoss):
        """open_clip's `ClipLoss` with the same options, on one or many ranks."""

        def forward(
            self,
            image_features: Tensor,
            text_features: Tensor,
            logit_scale: Tensor | float,
            logit_bias: Tensor | float | None = None,
            output_dict: bool = False,
        ) -> Tensor | dict[str, Tensor]:
            """The mean of both directions, in float32; arguments as in open_clip. `logit_bias` shifts all logits alike.

            Raises:
                ValueError, TypeError: as in `atk.info_nce`.
            """
            scale = logit_scale.reshape(()) if isinstance(logit_scale, Tensor) else logit_scale
            images, texts = image_features, text_features
            if self.world_size > 1:
                options = {"use_horovod": self.use_horovod} if hasattr(self, "use_horovod") else {}
                images, texts = library.gather_features(
                    image_features,
                    text_features,
                    local_loss=self.local_loss,
                    gather_with_grad=self.gather_with_grad,
                    rank=self.rank,
                    world_size=self.world_size,
                    **options,
                )
            if self.world_size > 1 and self.local_loss:
                labels = self.get_ground_truth(image_features.device, len(image_features))
                by_image = info_nce(image_features, texts, scale, positive=labels, reduction="mean")
                loss = by_image + info_nce(text_features, images, scale, positive=labels, reduction="mean")
            else:
                loss = info_nce(images, texts, scale, reduction="mean")
            if isinstance(logit_bias, Tensor):
                loss = loss + 0 * logit_bias.sum()  # DDP expects a gradient
            return {"contrastive_loss": loss} if output_dict else loss

    ClipLoss.__module__, ClipLoss.__qualname__ = __name__, "ClipLoss"
    return ClipLoss


def __getattr__(name: str) -> Any:
    if name == "ClipLoss":
        return _clip_loss()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _replacements() -> Replacements:
    return [(import_library("open_clip.factory"), "ClipLoss", _clip_loss())]


_rebinding = Rebinding("open_clip_torch", VERSIONS, _replacements)
install = _rebinding.install
uninstall = _rebinding.uninstall
