"""The check of Triton kernels before "auto" first uses them on a GPU, with right and wrong kernels in their place."""

import json
import sys
import threading
import types
import warnings
from pathlib import Path

import pytest
import torch

import atk
from atk.ops import backend as choice
from atk.ops import info_nce_chunked, max_mean_op, self_check

CPU = torch.device("cpu")
GPU = self_check.Gpu("NVIDIA X100", "13.0", "3.7.1", "2.13.0", "0.1.0")


class Kernels(types.ModuleType):
    """Stands for `atk.kernels.info_nce`; right unless `mistake` is set."""

    def __init__(self, mistake=None):
        super().__init__("atk.kernels.info_nce")
        self.mistake = mistake
        self.calls = 0

    def forward(self, audio, text, scale, columns):
        self.calls += 1
        if isinstance(self.mistake, Exception):
            raise self.mistake
        rows, columns, _ = info_nce_chunked.forward(audio, text, scale, None, columns)
        if self.mistake == "rows":
            rows[-1] += 0.01
        if self.mistake == "NaN":
            rows[0] = torch.nan
        return rows, columns

    def backward(self, *arguments):
        grads = info_nce_chunked.backward(*arguments)
        if self.mistake == "grad text":
            grads[1][-1] = 0
        return grads


@pytest.fixture
def new_gpu(monkeypatch, tmp_path):
    """The CPU in the role of a GPU that nothing has run on; the result installs kernels of InfoNCE."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for variable in (self_check.VARIABLE, "ATK_BACKEND", "ATK_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(self_check, "_verdicts", {})
    monkeypatch.setattr(self_check, "_index", lambda device: 0)
    monkeypatch.setattr(self_check.Gpu, "of", lambda index: GPU)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)  # an error in a build for CPUs
    monkeypatch.setattr(choice, "_GPU", "cpu")
    monkeypatch.setattr(choice, "unavailable", lambda name, device, dtype: "not on a GPU" if name == "cpp" else None)

    def install(mistake=None):
        kernels = Kernels(mistake)
        monkeypatch.setitem(sys.modules, "atk.kernels.info_nce", kernels)
        monkeypatch.setattr("atk.kernels.info_nce", kernels, raising=False)
        return kernels

    return install


def loss(dtype=torch.float32, backend="auto"):
    torch.manual_seed(3)
    audio, text = (torch.randn(6, 8, dtype=torch.float32).to(dtype) for _ in range(2))
    return atk.info_nce(audio, text, 2.0, backend=backend)


def passed(folder):
    """The keys on disk."""
    return json.loads((folder / "atk" / "self_check.json").read_text())["passed"]


def test_right_kernels_are_remembered_and_not_checked_again(new_gpu, tmp_path, monkeypatch):
    kernels = new_gpu()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value = loss()
        once = kernels.calls
        assert once == 3 and torch.equal(loss(), value) and kernels.calls == 4  # two problems, then one call at a time
        monkeypatch.setattr(self_check, "_verdicts", {})  # as in a new process
        loss()
        assert kernels.calls == 5
        loss(torch.bfloat16)  # another dtype is another check
        assert kernels.calls == 8
    versions = "NVIDIA X100 | compute capability 13.0 | triton 3.7.1 | torch 2.13.0 | atk 0.1.0"
    assert passed(tmp_path) == [f"{versions} | info_nce | torch.{name}" for name in ("bfloat16", "float32")]
    assert [path.name for path in (tmp_path / "atk").iterdir()] == ["self_check.json"]
    monkeypatch.setattr(self_check.Gpu, "of", lambda index: GPU._replace(triton="3.8.0"))
    loss()
    assert kernels.calls == 11 and len(passed(tmp_path)) == 3


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("rows", r"rows 1 is off by 1\.\de-03 of its largest value, tolerance 1e-04 \(\d of 10 results are wrong\)"),
        ("grad text", r"grad text [12] is off by \d\.\de-0[12] of its largest value, tolerance 1e-04"),
        ("NaN", r"rows 1 is off by inf of its largest value, tolerance 1e-04"),
        (ValueError("no code\nfor sm_130"), r"they raised ValueError: no code for sm_130"),
    ],
    ids=["value", "gradient", "NaN", "error"],
)
def test_wrong_kernels_are_replaced_with_one_warning(mistake, message, new_gpu, tmp_path):
    kernels = new_gpu(mistake)
    wanted = loss(backend="chunked")
    with pytest.warns(
        RuntimeWarning, match=rf"Triton kernels of info_nce .* float32 on NVIDIA X100, .*: {message}"
    ) as seen:
        assert torch.equal(loss(), wanted)
    assert len(seen) == 1 and seen[0].filename == __file__
    assert "`atk doctor --check`" in str(seen[0].message) and "backend='triton'" in str(seen[0].message)
    calls = kernels.calls
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(loss(), wanted) and kernels.calls == calls
        row = atk.backends("info_nce")["cpu float32"]
        assert row["auto"] == "chunked" and row["triton"].startswith("available, but failed its self-check: ")
        assert choice.choose("auto", CPU, torch.float32, "info_nce", check=False) == "chunked"
        assert choice.choose("triton", CPU, torch.float32, "info_nce") == "triton"
    assert not (tmp_path / "atk").exists()


@pytest.mark.parametrize(
    ("op", "other"),
    [("max_mean_similarity", "chunked"), ("cross_attention_difference", "sdpa"), ("sigmoid_loss", "chunked")],
)
def test_other_ops_fall_back_to_their_next_backend(op, other, new_gpu, monkeypatch):
    monkeypatch.setattr(self_check, "_check_in_thread", lambda *_: "everything is off")
    with pytest.warns(RuntimeWarning, match=f"kernels of {op} failed"):
        assert choice.choose("auto", CPU, torch.float16, op) == other


def test_the_dtype_under_autocast_is_checked(new_gpu, monkeypatch):
    checked = []
    monkeypatch.setattr(self_check, "_check_in_thread", lambda op, device, dtype: checked.append((op, dtype)))
    monkeypatch.setattr(max_mean_op, "_launchers", lambda name: pytest.importorskip("atk.kernels.cpp"))
    frames = torch.zeros(0, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        atk.max_mean_similarity(frames, frames)
        atk.cross_attention_difference(*[frames] * 4, torch.eye(4), num_heads=1, backend="sdpa")
    assert checked == [("max_mean_similarity", torch.bfloat16)]


def unwritable(folder):
    (folder / "atk").write_text("a file where the folder should be")


def damaged(folder):
    (folder / "atk").mkdir()
    (folder / "atk" / "self_check.json").write_text('{"passed": [1, "x"')


def foreign(folder):
    (folder / "atk").mkdir()
    (folder / "atk" / "self_check.json").write_text('{"passed": 1}')


def directory(folder):
    (folder / "atk" / "self_check.json").mkdir(parents=True)


@pytest.mark.parametrize("damage", [unwritable, damaged, foreign, directory])
def test_a_cache_that_cannot_be_used_costs_only_the_check(damage, new_gpu, tmp_path):
    kernels = new_gpu()
    damage(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss()
        loss()
    assert kernels.calls == 4
    if damage in (damaged, foreign):
        assert len(passed(tmp_path)) == 1  # written anew
    names = {path.name for path in tmp_path.rglob("*")}
    assert names <= {"atk", "self_check.json"}


def test_without_a_home_directory_results_stay_in_memory(new_gpu, monkeypatch):
    kernels = new_gpu()
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")

    def unknown(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", unknown)
    loss()
    loss()
    assert kernels.calls == 4
    with pytest.raises(OSError, match="the home directory is unknown; set ATK_CACHE to a folder for caches"):
        self_check.cache_folder()


def test_the_cache_is_in_the_home_directory_by_default(monkeypatch):
    monkeypatch.delenv("ATK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/somewhere")
    assert self_check._cache_file() == Path("/somewhere/.cache/atk/self_check.json")
    monkeypatch.setenv("ATK_CACHE", "/elsewhere")
    assert self_check._cache_file() == Path("/elsewhere/self_check.json")


def test_a_check_leaves_the_state_of_the_caller_alone(new_gpu):
    kernels = new_gpu()
    audio, text = (torch.randn(6, 8) for _ in range(2))
    saved = []

    def call():
        return atk.info_nce(audio, text, 2.0)

    torch.set_default_dtype(torch.float64)
    try:
        before = torch.get_rng_state()
        with (
            torch.inference_mode(),
            torch.autocast("cpu", torch.bfloat16),
            torch.device("meta"),
            torch.autograd.graph.saved_tensors_hooks(saved.append, lambda _: pytest.fail("unpacked")),
            torch.autograd.set_detect_anomaly(True),
        ):
            value = call()
            assert torch.is_inference_mode_enabled() and torch.is_autocast_enabled("cpu")
            assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), before) and not saved
    assert kernels.calls == 3 and torch.equal(value, call()) and torch.are_deterministic_algorithms_enabled()
    assert self_check._verdicts == {GPU.key("info_nce", torch.float32): None}


def test_activation_checkpointing_can_start_with_a_check(new_gpu):
    kernels = new_gpu()
    audio = torch.randn(6, 8, requires_grad=True)
    value = torch.utils.checkpoint.checkpoint(lambda x: atk.info_nce(x, x, 2.0), audio, use_reentrant=False)
    value.backward()  # raises an error if the second forward saves other tensors than the first
    assert kernels.calls == 4 and audio.grad.isfinite().all()


@pytest.mark.parametrize("reason", ["variable", "capture", "compile"])
def test_kernels_are_trusted_while_they_cannot_be_checked(reason, new_gpu, tmp_path, monkeypatch):
    kernels = new_gpu("rows")
    function = loss
    if reason == "variable":
        monkeypatch.setenv(self_check.VARIABLE, "0")
    if reason == "capture":
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    if reason == "compile":
        audio = torch.eye(6)
        compiled = torch.compile(lambda x: atk.info_nce(x, x, 2.0), fullgraph=True, backend="aot_eager")
        function = lambda: compiled(audio)  # noqa: E731
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        function()
    assert kernels.calls == 1 and not self_check._verdicts and not (tmp_path / "atk").exists()


def test_a_compiled_call_uses_what_an_earlier_check_decided(new_gpu):
    kernels = new_gpu("rows")
    with pytest.warns(RuntimeWarning, match="self-check"):
        loss()
    calls = kernels.calls
    audio = torch.eye(6)
    torch.compile(lambda x: atk.info_nce(x, x, 3.0), fullgraph=True, backend="aot_eager")(audio)
    assert kernels.calls == calls


def test_full_memory_says_nothing_about_the_kernels(new_gpu, tmp_path):
    kernels = new_gpu(torch.OutOfMemoryError("CUDA out of memory"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(torch.OutOfMemoryError):  # of the call itself
            loss()
    assert kernels.calls == 2 and not (tmp_path / "atk").exists()


def test_threads_share_one_check(new_gpu):
    kernels = new_gpu()
    threads = [threading.Thread(target=loss) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kernels.calls == 2 + len(threads)
