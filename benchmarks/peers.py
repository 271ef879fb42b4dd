"""Other libraries that compute the similarity, where they can be imported: Q = frames, D = tokens, over L_a frames.

`pip install late-interaction-kernels flash-maxsim maxsim-cpu` makes them available.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor


def providers(device: str, dtype: torch.dtype, kind: str) -> list[tuple[str, Callable[..., Tensor], str | None]]:
    """Name, function of (audio, text, mask), and why it cannot run here or None."""
    return [
        ("late-interaction-kernels", *_late_interaction_kernels()),
        ("flash-maxsim", *_flash_maxsim(device)),
        ("maxsim-cpu", *_maxsim_cpu(device, dtype, kind)),
    ]


def _late_interaction_kernels():
    try:
        from late_interaction_kernels import MaxSimScorer
    except ImportError as error:
        return _absent, str(error)
    scorer = MaxSimScorer(normalize=False)

    def call(audio, text, mask=None):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="late-interaction-kernels")  # asks for unit vectors
            return scorer(audio, text, None, mask) / audio.shape[1]

    return call, None


def _flash_maxsim(device: str):
    try:
        from flash_maxsim import flash_maxsim_batched_train
    except ImportError as error:
        return _absent, str(error)

    def call(audio, text, mask=None):
        lengths = None if mask is None else mask.sum(1)
        return flash_maxsim_batched_train(audio, text, doc_lengths=lengths) / audio.shape[1]

    return call, None if device == "cuda" else "runs on CUDA GPUs only"


def _maxsim_cpu(device: str, dtype: torch.dtype, kind: str):
    try:
        from maxsim_cpu import maxsim_scores
    except ImportError as error:
        return _absent, str(error)

    def call(audio, text, mask=None):
        documents = text.detach().numpy()
        # Longer queries need a BLAS that its wheel is not linked with: the scores come out wrong (0.1.0).
        pieces = audio.detach().split(32, dim=1)
        scores = [
            sum(torch.from_numpy(maxsim_scores(x.numpy(), documents)) for x in clip)
            for clip in zip(*pieces, strict=True)
        ]
        return torch.stack(scores) / audio.shape[1]

    if device != "cpu" or dtype != torch.float32:
        return call, "takes float32 on the CPU only"
    if "ragged" in kind:
        return call, "takes no mask"
    return call, None if kind == "forward" else "has no backward"


def _absent(*inputs):
    raise AssertionError("a missing provider is never called")
