"""Machine code of the kernels with products: copies run ahead of them, and a tile keeps to a budget of clocks."""

from dataclasses import asdict, astuple
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from atk.kernels.compile import compile_case, format_table
from atk.kernels.compile_signatures import ATTENTION_KERNELS, LOGIT_KERNELS, MAX_MEAN_KERNELS, Case
from atk.kernels.pipes import unknown_opcodes

# The most clocks that a tile may take in bfloat16 or float16, by pipe: today's figure and up to 3 %, more for the
# comparisons of the forward and of grad_audio.
BUDGETS = {  # matrix, fma, alu, special, shared, l2, issue
    ("sm_90", "forward"): (512, 195, 520, 0, 721, 452, 567),
    ("sm_90", "grad_audio"): (1024, 152, 400, 0, 1050, 924, 465),
    ("sm_90", "grad_text"): (1024, 255, 650, 0, 1050, 944, 749),
    ("sm_90", "attend"): (512, 284, 605, 560, 704, 502, 781),
    ("sm_90", "grad_query"): (384, 131, 461, 263, 572, 502, 503),
    ("sm_90", "grad_key"): (512, 218, 271, 263, 696, 462, 458),
    ("sm_90", "gate"): (512, 32, 152, 0, 716, 870, 210),
    ("sm_90", "lse"): (4096, 1841, 3106, 1120, 7811, 6988, 5325),
    ("sm_90", "grad_logits"): (512, 0, 78, 0, 716, 870, 160),
    ("sm_90", "sigmoid_loss"): (4096, 1919, 1936, 1054, 5817, 6960, 4161),
    ("sm_90", "sigmoid_grad"): (512, 0, 78, 0, 716, 870, 164),
    ("sm_80", "forward"): (1024, 655, 980, 0, 2999, 378, 1660),
    ("sm_80", "grad_audio"): (1024, 811, 519, 0, 1128, 756, 949),
    ("sm_80", "grad_text"): (512, 593, 737, 0, 568, 250, 803),
    ("sm_80", "attend"): (512, 426, 512, 280, 918, 412, 674),
    ("sm_80", "grad_query"): (768, 657, 653, 263, 1347, 412, 934),
    ("sm_80", "grad_key"): (1024, 395, 267, 263, 1557, 222, 667),
    ("sm_80", "gate"): (1024, 61, 168, 0, 1079, 711, 331),
    ("sm_80", "lse"): (8192, 1969, 3279, 1450, 10440, 5717, 5391),
    ("sm_80", "grad_logits"): (512, 0, 119, 0, 552, 356, 177),
    ("sm_80", "sigmoid_loss"): (8192, 3806, 2455, 1054, 9212, 5695, 5662),
    ("sm_80", "sigmoid_grad"): (512, 0, 119, 0, 552, 356, 177),
}
CAPABILITIES = {"sm_100": (10, 0), "sm_90": (9, 0), "sm_80": (8, 0)}
exhaustive = pytest.mark.exhaustive
WITH_BUDGETS = [
    ("sm_90", torch.bfloat16),
    pytest.param(("sm_90", torch.float16), marks=exhaustive),
    pytest.param(("sm_80", torch.bfloat16), marks=exhaustive),
    pytest.param(("sm_80", torch.float16), marks=exhaustive),
]


def targets(*params):
    return pytest.mark.parametrize("compiled", params, indirect=True, ids=lambda target: f"{target[0]}-{target[1]}")


@pytest.fixture(scope="module")
def compiled(request):
    """The architecture, and a row of the report and the code of every kernel with products."""
    arch, dtype = request.param
    cases = [Case(kernel, dtype) for kernel in MAX_MEAN_KERNELS]
    cases += [Case(kernel, dtype, 0, 768, heads=12) for kernel in ATTENTION_KERNELS]
    cases += [Case(kernel, dtype, 0, 512) for kernel in LOGIT_KERNELS]
    return arch, [compile_case(case, CAPABILITIES[arch]) for case in cases]


@pytest.mark.slow
@targets(*WITH_BUDGETS, pytest.param(("sm_100", torch.bfloat16), marks=exhaustive))
def test_copies_run_ahead_of_the_product(compiled):
    """A wait that leaves no copy under way would let the product wait for the copies of each tile."""
    _, kernels = compiled
    rows = [row for row, _ in kernels]
    assert all((row.ahead or 0) >= 1 for row in rows), format_table(rows)


@pytest.mark.slow
@targets(*WITH_BUDGETS)
def test_every_opcode_belongs_to_a_pipe(compiled):
    _, kernels = compiled
    assert {row.kernel: unknown_opcodes(code.instructions) for row, code in kernels} == {
        row.kernel: set() for row, _ in kernels
    }


@pytest.mark.slow
@targets(*WITH_BUDGETS)
def test_a_tile_keeps_to_its_budget_of_clocks(compiled):
    arch, kernels = compiled
    rows = [row for row, _ in kernels]
    assert {(arch, row.kernel) for row in rows} == {key for key in BUDGETS if key[0] == arch}
    for row in rows:
        assert row.clocks is not None, row.kernel
        over = [
            f"{pipe} takes {taken} clocks, and the budget is {budget}"
            for (pipe, taken), budget in zip(asdict(row.clocks).items(), BUDGETS[arch, row.kernel], strict=True)
            if taken > budget
        ]
        assert not over, f"{row.kernel}: {', '.join(over)}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "dtype", "tokens", "budget"),
    [
        ("sm_90", torch.float32, 16, 952),
        ("sm_90", torch.float32, 32, 476),
        ("sm_90", torch.float32, 64, 252),
        ("sm_80", torch.float32, 16, 779),
        ("sm_80", torch.bfloat16, 64, 390),
        ("sm_80", torch.bfloat16, 128, 213),
    ],
)
def test_a_gather_keeps_to_its_budget_of_clocks(arch, dtype, tokens, budget):
    row, code = compile_case(Case("grad_audio", dtype, tokens), CAPABILITIES[arch])
    assert row.hgmma == row.hmma == row.spills == 0 and not unknown_opcodes(code.instructions)
    assert row.clocks is not None and max(astuple(row.clocks)) <= budget, format_table([row])


@pytest.mark.slow
@targets(("sm_90", torch.bfloat16))
def test_the_page_on_kernels_quotes_the_clocks(compiled):
    page = (Path(__file__).parents[2] / "docs" / "kernels.md").read_text().replace("**", "")
    for row, _ in compiled[1]:
        if row.kernel in MAX_MEAN_KERNELS:
            cells = [f"{value:,}" for value in (row.ahead, *astuple(row.clocks))]
            assert f"| after | {' | '.join(cells)} |" in page, row.kernel
