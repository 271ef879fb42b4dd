"""late-interaction-kernels: its reference, which is what it runs on the CPU, without the scores of all token pairs.

`install()` speeds up `MaxSimScorer` and `retrieve` where its own kernels cannot run.
"""

from torch import Tensor
from torch.nn.functional import normalize as unit_vectors

from atk.integrations.maxsim import maxsim
from atk.integrations.rebinding import Rebinding, Replacements, import_library

__all__ = ["install", "uninstall"]

VERSIONS = ("0.4.0", "0.4.1", "0.4.2", "0.4.3", "0.4.4", "0.4.5")


def _replacements() -> Replacements:
    library = import_library("late_interaction_kernels.reference")
    original = library.maxsim_reference

    def maxsim_reference(
        Q: Tensor,
        D: Tensor,
        q_mask: Tensor | None = None,
        d_mask: Tensor | None = None,
        *,
        normalize: bool = False,
    ) -> Tensor:
        if Q.dim() == 2 or D.dim() == 2:
            return original(Q, D, q_mask, d_mask, normalize=normalize)
        if Q.dtype != D.dtype:
            Q, D = Q.float(), D.float()
        if normalize:
            Q, D = unit_vectors(Q, dim=-1, eps=1e-12), unit_vectors(D, dim=-1, eps=1e-12)
        masks = (
            mask if mask is None else mask.bool().expand(side.shape[:2]) for mask, side in ((q_mask, Q), (d_mask, D))
        )
        return maxsim(Q, D, *masks)

    return [(library, "maxsim_reference", maxsim_reference)]


_rebinding = Rebinding("late-interaction-kernels", VERSIONS, _replacements)
install = _rebinding.install
uninstall = _rebinding.uninstall
