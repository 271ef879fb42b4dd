"""colpali-engine: MaxSim of its losses and processors, on any device, without the scores of all token pairs.

`install()` takes the place of its optional backend `late-interaction-kernels`; `COLPALI_SCORES_BACKEND=torch` still
gives the library's own scores.
"""

from torch import Tensor

from atk.integrations.maxsim import maxsim, maxsim_candidates
from atk.integrations.rebinding import Rebinding, Replacements, import_library
from atk.ops.checks import DTYPES

__all__ = ["install", "uninstall"]

VERSIONS = ("0.3.17", "0.3.18")


def _replacements() -> Replacements:
    backend = import_library("colpali_engine.utils._lik_backend")

    def check(query: Tensor, documents: Tensor) -> None:
        if (query.dtype, query.device) != (documents.dtype, documents.device) or query.dtype not in DTYPES:
            raise backend.LIKUnsupportedError(
                "queries and documents must have the same floating-point dtype and device, got "
                f"{query.dtype} on {query.device} and {documents.dtype} on {documents.device}"
            )

    # Padding is zero and competes with a similarity of 0, as in the library, so there are no masks.
    def maxsim_inbatch_lik(query: Tensor, doc: Tensor) -> Tensor:
        check(query, doc)
        return maxsim(query, doc).to(query.dtype)

    def maxsim_kd_lik(query: Tensor, doc: Tensor) -> Tensor:
        check(query, doc)
        return maxsim_candidates(query, doc).to(query.dtype)

    return [(backend, "maxsim_inbatch_lik", maxsim_inbatch_lik), (backend, "maxsim_kd_lik", maxsim_kd_lik)]


_rebinding = Rebinding("colpali-engine", VERSIONS, _replacements)
install = _rebinding.install
uninstall = _rebinding.uninstall
