"""Other libraries: for each, its name, a function, and the reason that it cannot run here (None if it can).

`pip install late-interaction-kernels flash-maxsim maxsim-cpu fast-maxsim maxsim-fast sentence-transformers mteb inf-cl
cut-cross-entropy open-clip-torch` installs them, except for ErikKaum/maxsim, which the package `kernels` downloads from
the Hugging Face hub when it is first needed. Left out are SigLIP's kernels, which compute a different loss, and
NumKong's `maxsim`, which sums approximate angular distances of one clip and one caption per call.
"""

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NAMES = (
    "late-interaction-kernels", "flash-maxsim", "ErikKaum/maxsim", "maxsim-cpu", "fast-maxsim", "maxsim-fast",
    "sentence-transformers", "mteb", "inf-cl", "cut-cross-entropy", "open_clip",
)  # fmt: skip

Peer = tuple[str, Callable[..., Tensor], str | None]


def similarities(device: torch.device, dtype: torch.dtype, masks: bool, backward: bool) -> list[Peer]:
    """Functions of (audio, text, mask) that return the similarity; here clips are queries and captions documents."""
    return [
        _late_interaction_kernels(),
        _flash_maxsim(device),
        _hub_maxsim(device),
        *(_libxsmm(name, device, dtype, masks, backward) for name in ("maxsim-cpu", "fast-maxsim", "maxsim-fast")),
        _sentence_transformers(),
        _mteb(masks),
    ]


def losses(device: torch.device) -> list[Peer]:
    """Functions of (audio, text, scale) that return InfoNCE summed over both directions."""
    return [_inf_cl(device), _cut_cross_entropy(device), _open_clip()]


def _load(name: str, module: str) -> tuple[Any, str | None]:
    """The module, or the reason that it cannot be imported."""
    try:
        return importlib.import_module(module), None
    except ImportError as error:
        return None, f"{name}: {error}"
    except Exception as error:  # noqa: BLE001 (a library that fails while it is imported counts as missing)
        return None, f"{name} fails when imported: {error or type(error).__name__}"


def _late_interaction_kernels() -> Peer:
    library, missing = _load("late-interaction-kernels", "late_interaction_kernels")

    def call(audio: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="late-interaction-kernels")  # asks for unit vectors
            scorer = library.MaxSimScorer(normalize=False)
            return scorer(audio, text, None, mask) / audio.shape[1]

    return "late-interaction-kernels", call, missing


def _flash_maxsim(device: torch.device) -> Peer:
    library, missing = _load("flash-maxsim", "flash_maxsim")

    def call(audio: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        lengths = None if mask is None else mask.sum(1)
        return library.flash_maxsim_batched_train(audio, text, doc_lengths=lengths) / audio.shape[1]

    return "flash-maxsim", call, missing or _only_cuda(device)


def _libxsmm(name: str, device: torch.device, dtype: torch.dtype, masks: bool, backward: bool) -> Peer:
    """maxsim-cpu or a fork of it, with the same interface."""
    library, missing = _load(name, name.replace("-", "_"))

    def call(audio: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        documents = text.detach().numpy()
        # Queries longer than 32 need a BLAS, which the 0.1.0 wheel isn't linked against; without it, their scores are
        # wrong.
        pieces = audio.detach().split(32, dim=1)
        scores = [
            sum((torch.from_numpy(library.maxsim_scores(x.numpy(), documents)) for x in clip), torch.zeros(()))
            for clip in zip(*pieces, strict=True)
        ]
        return torch.stack(scores) / audio.shape[1]

    if device.type != "cpu" or dtype != torch.float32:
        missing = missing or "takes float32 on the CPU only"
    if masks:
        missing = missing or "takes no mask"
    if backward:
        missing = missing or "has no backward"
    return name, call, missing


def _sentence_transformers() -> Peer:
    library, missing = _load("sentence-transformers", "sentence_transformers.util")

    def call(audio: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        return library.maxsim(audio, text, b_mask=mask) / audio.shape[1]

    return "sentence-transformers", call, missing


def _mteb(masks: bool) -> Peer:
    library, missing = _load("mteb", "mteb.similarity_functions")

    def call(audio: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        return library.max_sim(audio, text) / audio.shape[1]

    return "mteb", call, missing or ("takes no mask" if masks else None)


def _hub_maxsim(device: torch.device) -> Peer:
    hub, missing = _load("ErikKaum/maxsim", "kernels")
    missing = missing or _only_cuda(device)
    library: Any = None
    if missing is None:
        try:
            library = hub.get_kernel("erikkaum/maxsim", version=2, trust_remote_code=True)
        except Exception as error:  # noqa: BLE001 (no network, or no build for this torch and GPU)
            missing = f"ErikKaum/maxsim: {' '.join(str(error).split()) or type(error).__name__}"

    def call(audio: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        captions, tokens = text.shape[:2]
        lengths = text.new_full((captions,), tokens, dtype=torch.int32) if mask is None else mask.sum(1)
        offsets = F.pad(lengths.cumsum(0), (1, 0)).int()
        rows = text.flatten(0, 1) if mask is None else text[mask]
        return library.score_contrastive_train(audio, rows, offsets) / audio.shape[1]

    return "ErikKaum/maxsim", call, missing


def _inf_cl(device: torch.device) -> Peer:
    library, missing = _load("inf-cl", "inf_cl")

    def call(audio: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        rows = library.cal_flash_loss(audio, text, scale=scale).mean()
        return rows + library.cal_flash_loss(text, audio, scale=scale).mean()

    return "inf-cl", call, missing or _only_cuda(device)


def _cut_cross_entropy(device: torch.device) -> Peer:
    library, missing = _load("cut-cross-entropy", "cut_cross_entropy")

    def call(audio: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        target = torch.arange(len(audio), device=audio.device)
        scaled = (audio * scale).to(audio.dtype)
        exact = {"impl": "cce", "filter_eps": None}  # by default small gradients are skipped
        rows = library.linear_cross_entropy(scaled, text, target, **exact)
        return rows + library.linear_cross_entropy(text, scaled, target, **exact)

    return "cut-cross-entropy", call, missing or _only_cuda(device)


def _open_clip() -> Peer:
    library, missing = _load("open_clip", "open_clip.loss")

    def call(audio: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        return 2 * library.ClipLoss()(audio, text, scale)

    return "open_clip", call, missing


def cross_entropies(logits: Tensor) -> Tensor:
    """Symmetric InfoNCE of logits `[N, N]`, as a PyTorch user would write it."""
    target = torch.arange(len(logits), device=logits.device)
    return F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)


def _only_cuda(device: torch.device) -> str | None:
    return None if device.type == "cuda" else "runs on CUDA GPUs only"
