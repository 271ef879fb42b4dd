"""Cases of the cross-attention difference for ptx_machine."""

import torch
from support.executed_case import Case, Inputs, random, random_mask

import atk


def case(N, L_a, L_ref, heads, width, *, bias=True, mask=True, poison=False, everywhere=False) -> Case:
    """N clips of L_a frames and L_ref keys. The first half of the first clip's keys is padding."""
    D = heads * width
    leaves = ("source", "q", "k", "v", "out_weight", *(("out_bias",) if bias else ()))

    def inputs(dtype: torch.dtype) -> Inputs:
        lengths = {"source": L_a, "q": L_a, "k": L_ref, "v": L_ref}
        values = {name: random(N, L, D, key=name, dtype=dtype) for name, L in lengths.items()}
        values["out_weight"] = (random(D, D, key="w") / D**0.5).to(dtype)
        if bias:
            values["out_bias"] = random(D, key="b", dtype=dtype)
        if mask:
            values["key_mask"] = random_mask(N, L_ref, key="keys")
            values["key_mask"][0, : L_ref // 2], values["key_mask"][0, -1] = False, True
        for name in ("k", "v") if poison else ():
            values[name] = values[name].masked_fill(~values["key_mask"][..., None], float("nan"))
        return values

    def op(backend, source, q, k, v, out_weight, out_bias=None, key_mask=None):
        return atk.cross_attention_difference(
            source, q, k, v, out_weight, out_bias, key_mask, num_heads=heads, backend=backend
        )

    name = f"attention, {N} x {L_a} x {L_ref}, {heads} heads of {width}"
    flags = {"no bias": not bias, "no mask": not mask, "NaN in padding": poison}
    name = ", ".join([name, *(flag for flag, given in flags.items() if given)])
    return Case(name, op, inputs, leaves, everywhere=everywhere)


ATTENTION = [
    case(3, 70, 130, 2, 16, everywhere=True),
    case(1, 130, 70, 1, 64, mask=False),
    case(2, 20, 70, 1, 64, bias=False),
    case(3, 33, 40, 2, 20, poison=True, everywhere=True),
    case(1, 33, 40, 1, 40),
    case(2, 20, 40, 1, 128, everywhere=True),
    case(1, 20, 40, 1, 256),
    case(2, 17, 65, 3, 5),
    case(2, 20, 33, 3, 32, mask=False),
    case(1, 1, 1, 1, 1, mask=False),
]
