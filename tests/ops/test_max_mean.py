"""`atk.max_mean_similarity`: values, gradients, and errors, on every backend that runs on this machine.

Without a GPU, the Triton cases run in Triton's interpreter, started by `tests/kernels/test_interpreter.py`. The
kernels have their own tests there.
"""

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from support.peak_memory import peak_growth
from support.public_cases import BACKENDS, TRITON_DEVICE, cpp_runs, gradients, loop_similarity, no_bf16, ragged

import atk
from atk.ops import reference


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equals_the_definition(backend, dtype):
    if backend == "triton" and dtype == torch.bfloat16 and TRITON_DEVICE.type == "cpu":
        pytest.skip(no_bf16)
    inputs = ragged(dtype=dtype)
    sim = atk.max_mean_similarity(*inputs, backend=backend)
    assert sim.dtype == torch.float32
    torch.testing.assert_close(sim.double(), loop_similarity(*inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("direction", ["audio", "text", "both"])
def test_directions_and_gradients_equal_the_float64_reference(backend, direction):
    audio, text, audio_mask, text_mask = ragged()

    def truth(audio, text):
        by_audio = reference.max_mean_similarity(audio, text, audio_mask, text_mask)
        by_text = reference.max_mean_similarity(text, audio, text_mask, audio_mask).T
        return {"audio": by_audio, "text": by_text, "both": (by_audio + by_text) / 2}[direction]

    def op(audio, text):
        return atk.max_mean_similarity(audio, text, audio_mask, text_mask, direction=direction, backend=backend)

    for got, wanted in zip(gradients(op, audio, text), gradients(truth, audio.double(), text.double()), strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_of_any_content_changes_nothing_and_gets_no_gradient(backend):
    audio, text, audio_mask, text_mask = ragged()

    def op(audio, text):
        return atk.max_mean_similarity(audio, text, audio_mask, text_mask, backend=backend, normalize=True)

    wanted = gradients(op, audio, text)
    for poison in (math.nan, math.inf, -math.inf, 1e30):
        got = gradients(
            op, audio.masked_fill(~audio_mask[..., None], poison), text.masked_fill(~text_mask[..., None], poison)
        )
        assert all(torch.equal(value, want) for value, want in zip(got, wanted, strict=True))
    assert wanted[1][~audio_mask].eq(0).all() and wanted[2][~text_mask].eq(0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_rows_score_zero_with_zero_gradient(backend):
    audio, text, audio_mask, text_mask = ragged()
    sim, grad_audio, grad_text = gradients(
        lambda a, t: atk.max_mean_similarity(a, t, audio_mask, text_mask, backend=backend), audio, text
    )
    assert sim[1].eq(0).all() and sim[:, 2].eq(0).all()
    assert grad_audio[1].eq(0).all() and grad_text[2].eq(0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (3, 0, 4, 5), (3, 2, 0, 5), (3, 2, 4, 0)])
def test_empty_axes(backend, shape):
    clips, captions, frames, tokens = shape
    sim, grad_audio, grad_text = gradients(
        lambda a, t: atk.max_mean_similarity(a, t, backend=backend),
        torch.randn(clips, frames, 6),
        torch.randn(captions, tokens, 6),
    )
    assert sim.shape == (clips, captions) and sim.eq(0).all()
    assert grad_audio.eq(0).all() and grad_text.eq(0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_go_to_the_first_valid_token(backend):
    audio, token = torch.randn(2, 3, 4), torch.randn(4)
    text = token.expand(1, 5, 4).clone()
    text_mask = torch.tensor([[False, True, True, False, True]])
    _, _, grad_text = gradients(
        lambda a, t: atk.max_mean_similarity(a, t, None, text_mask, backend=backend), audio, text
    )
    assert grad_text[0, 1].abs().sum() > 0
    assert grad_text[0, [0, 2, 3, 4]].eq(0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_in_a_valid_position_propagates_and_stays_in_its_row(backend):
    audio, text = torch.randn(3, 4, 5), torch.randn(3, 6, 5)
    audio[0, 1, 2] = text[2, 3, 4] = math.nan
    sim = atk.max_mean_similarity(audio, text, backend=backend)
    expected = torch.zeros(3, 3, dtype=torch.bool)
    expected[0], expected[:, 2] = True, True
    assert torch.equal(sim.isnan(), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_of_minus_infinity_never_choose_padding(backend):
    audio, text = torch.full((1, 2, 1), 3e38), torch.full((1, 3, 1), -3e38)
    text_mask = torch.tensor([[False, True, True]])
    sim, _, grad_text = gradients(
        lambda a, t: atk.max_mean_similarity(a, t, None, text_mask, backend=backend), audio, text
    )
    assert sim.item() == -math.inf
    assert grad_text[0, 1] != 0 and grad_text[0, 0] == 0 and grad_text[0, 2] == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_huge_and_tiny_values(backend):
    for scale in (1e-18, 1e15):
        audio, text, audio_mask, text_mask = ragged()
        sim = atk.max_mean_similarity(audio * scale, text * scale, audio_mask, text_mask, backend=backend)
        wanted = loop_similarity(audio * scale, text * scale, audio_mask, text_mask)
        torch.testing.assert_close(sim.double(), wanted, rtol=1e-4, atol=1e-6 * scale**2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_normalize_is_the_cosine(backend):
    audio, text, audio_mask, text_mask = ragged()
    sim = atk.max_mean_similarity(audio, text, audio_mask, text_mask, normalize=True, backend=backend)
    unit = F.normalize(audio, dim=-1), F.normalize(text, dim=-1)
    torch.testing.assert_close(sim, atk.max_mean_similarity(*unit, audio_mask, text_mask, backend=backend))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_normalize_of_zero_and_of_huge_vectors(dtype):
    audio, text = torch.zeros(1, 2, 64, dtype=dtype), torch.ones(1, 1, 64, dtype=dtype)
    audio[0, 1] = 3e4  # its norm is beyond the range of float16
    sim, grad_audio, _ = gradients(lambda a, t: atk.max_mean_similarity(a, t, normalize=True), audio, text)
    assert sim.item() == pytest.approx(0.5, rel=0.01) and grad_audio[0, 1].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "order", [(1, 0, 2), (0, 2, 1), (2, 1, 0)], ids=["frames first", "channels second", "reversed"]
)
def test_memory_layouts_and_their_gradients(backend, order):
    audio, text, audio_mask, text_mask = ragged(clips=2, captions=1, frames=8)
    back = [order.index(axis) for axis in range(3)]

    def laid_out(value):
        return value.permute(order).contiguous().permute(back)

    def op(backend, masks):
        return lambda a, t: atk.max_mean_similarity(laid_out(a), laid_out(t), *masks, backend=backend)

    strided = audio_mask.T.contiguous().T, text_mask
    wanted = gradients(op("reference", (audio_mask, text_mask)), audio.double(), text.double())
    for got, want in zip(gradients(op(backend, strided), audio, text), wanted, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives_are_refused(backend):
    audio, text = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 3, 4, requires_grad=True)
    sim = atk.max_mean_similarity(audio, text, backend=backend)
    (grad,) = torch.autograd.grad(sim.sum(), audio, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.pow(2).sum().backward()


@pytest.mark.slow
def test_gradcheck():
    audio, text, audio_mask, text_mask = ragged(dtype=torch.float64)
    for direction, normalize in (("audio", False), ("both", True)):
        assert torch.autograd.gradcheck(
            lambda a, t, d=direction, n=normalize: atk.max_mean_similarity(
                a, t, audio_mask, text_mask, direction=d, normalize=n, backend="reference"
            ),
            (audio.requires_grad_(), text.requires_grad_()),
        )


@pytest.mark.slow
@cpp_runs
def test_opcheck():
    audio, text, audio_mask, text_mask = (value.flatten(0, 1) for value in ragged())
    audio.requires_grad_(), text.requires_grad_()
    cu_audio, cu_text = torch.arange(5).int() * 9, torch.arange(6).int() * 7
    for masks in ((audio_mask, text_mask), (None, None)):
        sequences = audio, cu_audio, masks[0], 9, text, cu_text, masks[1], 7
        for with_index in (True, False):
            options = False, False, "cpp", with_index
            torch.library.opcheck(torch.ops.atk.max_mean_forward.default, (*sequences, *options, True))
            sim, *prepared = torch.ops.atk.max_mean_forward(*sequences, *options, True)
            detached = [value.detach() if isinstance(value, torch.Tensor) else value for value in sequences]
            torch.library.opcheck(
                torch.ops.atk.max_mean_backward.default, (sim.detach(), *prepared, *detached, *options)
            )
        torch.library.opcheck(torch.ops.atk.normalize_rows.default, (audio, masks[0], "cpp"))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_compiles_into_one_graph(backend):
    audio, text, audio_mask, text_mask = ragged(captions=4)
    loss = atk.nn.AlignedContrastiveLoss(learnable=True, backend=backend)

    def run(function):
        return gradients(lambda a, t: function(a[:, 0], t[:, 0], a, t, audio_mask, text_mask), audio, text)

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for got, wanted in zip(run(compiled), run(loss), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_accepts_mixed_and_half_precision_inputs(backend):
    if backend == "triton" and TRITON_DEVICE.type == "cpu":
        pytest.skip(no_bf16)
    audio, text, audio_mask, text_mask = ragged(dtype=torch.bfloat16)
    wanted = atk.max_mean_similarity(audio, text, audio_mask, text_mask, backend=backend)
    for mixed in ((audio.float(), text.float()), (audio, text.float()), (audio.float(), text)):
        with torch.autocast(audio.device.type, torch.bfloat16):
            sim = atk.max_mean_similarity(*mixed, audio_mask, text_mask, backend=backend)
        assert torch.equal(sim, wanted)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"audio": torch.randn(3, 4)}, ValueError, r"audio must have shape \[N_a, L_a, D\], got \[3, 4\]"),
        ({"audio": [[1.0]]}, TypeError, "audio must be a torch.Tensor"),
        ({"text": torch.randn(2, 3, 6)}, ValueError, "text and audio must have the same width D, got 6 and 5"),
        ({"text": torch.randn(2, 3, 5).half()}, TypeError, "same dtype, got torch.float16 and torch.float32"),
        ({"text": torch.zeros(2, 3, 5, dtype=torch.int64)}, TypeError, "text must be float32"),
        ({"text": torch.randn(2, 3, 5, device="meta")}, ValueError, "on the same device, got meta and cpu"),
        ({"audio": torch.randn(2, 4, 0), "text": torch.randn(2, 3, 0)}, ValueError, "at least one channel"),
        ({"audio_mask": torch.ones(2, 4)}, TypeError, "audio_mask must be a boolean tensor, True = valid"),
        ({"text_mask": torch.ones(2, 4, dtype=torch.bool)}, ValueError, r"text_mask must have shape \[2, 3\]"),
        ({"text_mask": [True]}, TypeError, "text_mask must be a boolean tensor"),
        (
            {"audio_mask": torch.ones(2, 4, device="meta") > 0},
            ValueError,
            "must be on the device of audio .cpu., got",
        ),
        ({"audio": torch.zeros(1, 1, 5).expand(1 << 16, 1 << 16, 5)}, ValueError, "audio must have at most .* rows in"),
        ({"direction": "frames"}, ValueError, "direction must be one of"),
        ({"backend": "cuda"}, ValueError, "argument backend must be 'auto' or one of"),
        ({"backend": "triton"}, atk.BackendError, "backend 'triton'"),
    ],
)
def test_errors_name_the_argument(change, error, message, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    arguments = {"audio": torch.randn(2, 4, 5), "text": torch.randn(2, 3, 5), **change}
    with pytest.raises(error, match=message):
        atk.max_mean_similarity(**arguments)


def test_environment_variable_sets_the_default(monkeypatch):
    monkeypatch.setenv("ATK_BACKEND", "fast")
    with pytest.raises(ValueError, match="environment variable ATK_BACKEND"):
        atk.max_mean_similarity(torch.randn(2, 4, 5), torch.randn(2, 3, 5))
    monkeypatch.setenv("ATK_BACKEND", "reference")
    assert atk.max_mean_similarity(torch.randn(2, 4, 5), torch.randn(2, 3, 5)).shape == (2, 2)


def test_backends_tells_what_auto_picks_and_why_others_cannot_run():
    row = atk.backends()["cpu float64"]
    assert row["auto"] == "chunked" == next(name for name, state in row.items() if state == "available")
    assert "float64" in row["cpp"]


_STEP = """
def step(width):
    audio, text = (torch.randn(width, n, width, requires_grad=True) for n in (250, 32))
    atk.max_mean_similarity(audio, text, backend=sys.argv[2]).sum().backward()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
@cpp_runs
def test_cpp_never_holds_the_four_dimensional_tensor():
    used = {name: peak_growth(_STEP, 128, name) for name in ("cpp", "reference")}
    # The tensor takes 524 MB.
    assert used["cpp"] < 200 < 524 < used["reference"], f"peak growth in MB: {used}"
