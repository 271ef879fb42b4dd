"""Cases of InfoNCE and the sigmoid loss for ptx_machine."""

import torch
from support.executed_case import Case, Inputs, random

import atk

LEAVES = ("audio", "text", "scale")


def vectors(N_a: int, N_t: int, D: int, scale: float, *, unit: bool = True, size: float = 1.0, positives: bool = False):
    """Makes N_a and N_t rows, of unit norm or normal times `size`."""

    def inputs(dtype: torch.dtype) -> Inputs:
        rows = {"audio": random(N_a, D, key="a"), "text": random(N_t, D, key="t")}
        rows = {name: torch.nn.functional.normalize(x) if unit else x * size for name, x in rows.items()}
        values = {name: x.to(dtype) for name, x in rows.items()} | {"scale": torch.tensor(scale)}
        if positives:
            values["positive"] = torch.arange(N_a).mul(7).remainder(N_t)
        return values

    return inputs


def loss(backend, audio, text, scale, positive=None):
    return atk.info_nce(audio, text, scale, positive=positive, backend=backend)


def sigmoid(backend, audio, text, scale, positive=None):
    return atk.sigmoid_loss(audio, text, scale, 0.5 - scale.detach(), positive=positive, backend=backend)


def logsumexp(backend, audio, text, scale):
    return torch.cat(atk.pairwise_logsumexp(audio, text, scale, backend=backend))


def row_logsumexp(backend, audio, text, scale):
    return atk.pairwise_logsumexp(audio, text, scale, columns=False, backend=backend)[0]


HUGE = "InfoNCE, logits up to 1e5"
INFO_NCE = [
    Case("InfoNCE, 150 pairs, 64 channels", loss, vectors(150, 150, 64, 14.3), LEAVES, everywhere=True),
    Case("InfoNCE, 128 pairs, 128 channels, full tiles", loss, vectors(128, 128, 128, 100.0), LEAVES),
    Case("InfoNCE, 70 pairs, 33 channels", loss, vectors(70, 70, 33, 5.0), LEAVES),
    Case("InfoNCE, 70 of 200 captions", loss, vectors(70, 200, 64, 20.0, positives=True), LEAVES, everywhere=True),
    Case("log-sum-exp, 256 x 128, negative scale", logsumexp, vectors(256, 128, 32, -10.0), LEAVES),
    Case("log-sum-exp, 130 x 300", logsumexp, vectors(130, 300, 64, 3.0, unit=False), LEAVES),
    Case("log-sum-exp of rows, 200 x 40", row_logsumexp, vectors(200, 40, 64, 3.0, unit=False), LEAVES),
    Case("log-sum-exp, 1 x 9", logsumexp, vectors(1, 9, 3, 2.0), LEAVES),
    Case("sigmoid loss, 140 pairs, 33 channels", sigmoid, vectors(140, 140, 33, 10.0), LEAVES, everywhere=True),
    Case("sigmoid loss, 70 of 200 captions", sigmoid, vectors(70, 200, 64, 20.0, positives=True), LEAVES),
    Case(HUGE, loss, vectors(150, 150, 32, 30.0, unit=False, size=10.0), LEAVES, everywhere=True),
]
