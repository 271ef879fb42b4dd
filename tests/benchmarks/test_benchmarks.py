"""The benchmark harness: statuses of providers, the limit, sweeps, regressions, plots, and pages."""

import copy
import functools
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from atk.bench import cross_attention_difference, info_nce, max_mean_similarity, measure, memory, sizes
from atk.bench.measure import Case, Provider, Row, compare
from atk.bench.plots import plot_sweeps
from atk.bench.regressions import regressions
from atk.bench.report import Table, libraries, markdown, write

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_limit(monkeypatch):
    monkeypatch.setattr(measure, "MATMUL_SIZE", {"cpu": 64})
    monkeypatch.setattr(measure, "BEYOND_CACHE", 1 << 20)


def rows_of(*providers, flops=1e6, nbytes=0.0):
    inputs = (torch.randn(64),)
    truth = [inputs[0].double() * 2]
    return compare(Case("a case", inputs, lambda: truth, providers, flops, nbytes), rounds=2)


def right(x):
    return (x * 2,)


def no_memory(x):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")


def broken(x):
    raise ValueError("tile does not fit |x|\nmore lines")


def test_providers_that_cannot_be_timed_keep_their_row():
    calls = iter(range(9))
    *rows, limit = rows_of(
        Provider("right", right),
        Provider("wrong", lambda x: (x * 2.1,)),
        Provider("nan", lambda x: (x * float("nan"),)),
        Provider("other shape", lambda x: (x[:1] * 2,)),
        Provider("no memory", no_memory),
        Provider("large", right, needs_bytes=1 << 60),
        Provider("broken", broken),
        Provider("broken later", lambda x: right(x) if next(calls) < 3 else broken(x)),
        Provider("absent", broken, missing="not installed"),
    )
    rows = {row.provider: row for row in rows}
    states = {name: (row.status, row.note) for name, row in rows.items()}
    assert states.pop("right") == ("ok", "")
    assert rows["right"].error < 1e-6 and rows["right"].median_ms > 0
    assert states.pop("wrong")[0] == states.pop("nan")[0] == "wrong"
    tried, by_shape = states.pop("no memory"), states.pop("large")
    assert tried[0] == by_shape[0] == "out of memory"
    assert tried[1].startswith("tried: ") and by_shape[1].startswith("not tried: needs 1099511627776 MiB by its shapes")
    tile = ("failed", "tile does not fit |x|")
    assert states == {
        "broken": tile,
        "broken later": tile,
        "other shape": ("failed", "result has shape [1], expected [64]"),
        "absent": ("missing", "not installed"),
    }
    assert all(row.median_ms is None for name, row in rows.items() if name != "right")
    notes = {name: row.note.replace("|", r"\|") for name, row in rows.items() if row.status != "ok"}
    page = markdown("a case", [*rows.values(), limit])
    assert all(f"| {name} | {rows[name].status}: {note}" in page for name, note in notes.items())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not report its memory")
def test_only_the_call_that_exceeds_free_memory_fails(monkeypatch):
    def greedy(x):
        return (x * 2 + torch.ones(1 << 26).sum() * 0,)

    monkeypatch.setattr(memory, "free_bytes", lambda device: 128 << 20)
    row, after, _ = rows_of(Provider("256 MiB", greedy), Provider("after", right))
    assert row.status == "out of memory" and row.note.startswith("tried: ") and after.status == "ok"
    monkeypatch.undo()
    assert rows_of(Provider("256 MiB", greedy))[0].status == "ok"


def test_rates_are_relative_to_the_limit_and_the_first_provider():
    slow, fast, limit = rows_of(
        Provider("slow", lambda x: (sum(x for _ in range(200)) / 100,)), Provider("fast", right), flops=1e9
    )
    assert slow.ratio == 1 and fast.ratio == pytest.approx(slow.median_ms / fast.median_ms) and limit.ratio is None
    assert limit.of_limit == 1 and fast.of_limit == pytest.approx(limit.median_ms / fast.median_ms)
    assert fast.gflops == pytest.approx(1 / (fast.median_ms * 1e-3))
    assert f"matmul {limit.gflops:.0f} GFLOP/s" in limit.note and limit.note.endswith("bound by matmul")


def test_the_copy_rate_limits_large_data():
    limit = rows_of(nbytes=1e12)[-1]
    rate = float(limit.note.partition("copy ")[2].split()[0])
    assert limit.note.endswith("bound by copy") and 1e6 / limit.median_ms == pytest.approx(rate, abs=0.051)


@pytest.mark.parametrize(("half_ms", "product"), [(9.0, "float32"), (1.0, "float16")])
def test_the_limit_multiplies_in_the_faster_type(half_ms, product, monkeypatch):
    durations = iter([half_ms] * 5 + [3.0] * 5)
    monkeypatch.setattr(measure, "_milliseconds", lambda call, device: next(durations, 1.0))
    limit = measure._Limit(CPU, torch.float16)
    limit.measure()
    assert limit.row(1e9, 0.0).note.startswith(f"64 x 64 {product} matmul ")


def test_a_compiler_that_gives_up_fails(monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch.compiler.reset()
    states = []
    with torch._dynamo.config.patch(recompile_limit=1):
        for pairs in (8, 9):
            case = info_nce.case(sizes.Vectors(pairs, 16), "step", torch.float32, CPU)
            compiled = next(provider for provider in case.providers if provider.name.startswith("torch.compile"))
            states.append(measure.check(compiled, case, case.truth()).status)
    torch.compiler.reset()
    assert states == ["ok", "failed"]


def test_peak_memory_is_that_of_the_call():
    row = rows_of(Provider("large", lambda x: (torch.ones(1 << 24).sum() * 0 + x * 2,)))[0]
    assert row.peak_mib != row.peak_mib or 60 < row.peak_mib < 70  # NaN if the system does not report it


def test_timed_calls_get_different_copies_of_the_inputs():
    pointers = []

    def recorded(x):
        pointers.append(x.data_ptr())
        return right(x)

    rows_of(Provider("first", recorded), Provider("second", recorded))
    timed = pointers[-4:]  # two rounds of two providers
    assert len(set(timed)) == 4


def test_operations_of_the_cross_attention_count_valid_frames_only():
    case = cross_attention_difference.case(sizes.Attention(3, 8, 16, 2), "step", torch.float32, CPU)
    frames, reference, mask, _ = case.inputs
    attention = nn.MultiheadAttention(16, 2, batch_first=True)
    assert not mask.all()
    with FlopCounterMode(display=False) as counter:
        for queries, keys, valid in zip(frames, reference, mask, strict=True):
            attention(queries[None], keys[None, valid], keys[None, valid])
    assert case.flops == 3 * counter.get_total_flops()


def test_a_sampled_truth_equals_rows_of_the_full_one():
    shape = sizes.Pairs(7, 6, 5, 4, 8)
    audio, text, mask = max_mean_similarity.embeddings(shape, torch.float32, torch.device("cpu"))
    grad, sample = torch.randn(7, 6), (torch.tensor([0, 6]), torch.tensor([1, 5]))
    sampled = max_mean_similarity.true_step(audio, text, grad, mask, sample)
    full = max_mean_similarity.select_sample(max_mean_similarity.true_step(audio, text, grad, mask), sample)
    assert [value.shape[0] for value in sampled] == [2, 2, 2]
    for got, want in zip(sampled, full, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("op", sizes.NAMED)
@pytest.mark.parametrize("short", [True, False])
def test_a_sweep_varies_one_axis(op, short):
    for axis in sizes.AXES:
        shapes = sizes.shapes(op, axis, short)
        assert len(set(shapes)) == len(shapes) != 1
        varied = {
            field for shape in shapes for field, value in shape._asdict().items() if value != shapes[0]._asdict()[field]
        }
        assert not shapes or len(varied) == 1 or varied == {"clips", "captions"}


def table(clips=16, size="batch", **times):
    rows = [
        Row(name.replace("_", " "), median_ms=ms, p20_ms=ms, p80_ms=ms, peak_mib=40.0) for name, ms in times.items()
    ]
    shape = {"clips": clips, "captions": clips, "frames": 9, "tokens": 5, "channels": 8}
    return Table(f"{clips} clips", "max_mean_similarity", size, "step", "float32", shape, rows)


def test_a_slower_row_is_a_regression_and_a_slower_machine_is_not():
    saved = [table(naive=10.0, atk_cpp=2.0, limit=1.0)]
    assert regressions([table(naive=30.0, atk_cpp=2.4, limit=1.0)], saved, 1.3) == ([], 1)
    lines, compared = regressions([table(naive=10.0, atk_cpp=2.8, limit=1.0)], saved, 1.3)
    assert lines == ["16 clips: atk cpp: 2.00 ms before, 2.80 ms now (1.40x)"] and compared == 1
    assert regressions([table(naive=20.0, atk_cpp=4.0, limit=2.0)], saved, 1.3)[0] == []
    assert regressions([table(clips=32, atk_cpp=9.0, limit=1.0)], saved, 1.3) == ([], 0)


@pytest.mark.parametrize(
    ("change", "loss"),
    [
        ({"status": "wrong", "note": "error above 0.1", "median_ms": None}, r"wrong \(error above 0.1\)"),
        ({"status": "missing", "note": "no compiler", "median_ms": None}, r"missing \(no compiler\)"),
        ({"peak_mib": 60.0}, "40.0 MiB before, 60.0 MiB now"),
    ],
)
def test_failing_rows_and_more_memory_are_regressions(change, loss):
    saved = [table(atk_cpp=2.0, limit=1.0)]
    now = copy.deepcopy(saved)
    now[0].rows[0] = replace(now[0].rows[0], **change)
    (line,), _ = regressions(now, saved, 1.3)
    assert re.search(loss, line)


def test_plots_of_a_sweep(tmp_path):
    pytest.importorskip("matplotlib")
    tables = [table(clips, naive=clips / 2, atk_cpp=clips / 9, limit=clips / 20) for clips in (16, 32, 64)]
    tables[2].rows[0] = Row("naive", "out of memory", "tried: no")
    names = plot_sweeps([*tables, table(size="thesis", naive=1.0, limit=1.0)], tmp_path, "bench")
    assert names == ["bench_max_mean_similarity_step_float32_batch.png"]
    assert (tmp_path / names[0]).read_bytes()[:4] == b"\x89PNG"


def test_plots_are_listed_under_their_op(tmp_path):
    tables = [replace(table(), op=op, rows=[]) for op in ("info_nce", "aligned_info_nce")]
    plots = ["bench_info_nce_step_float32_batch.png", "bench_aligned_info_nce_step_float32_batch.png"]
    write(tmp_path / "bench", tables, {}, {}, plots)
    parts = (tmp_path / "bench.md").read_text().split("## ")
    assert [[name for name in plots if name in part] for part in parts if ".png" in part] == [plots[:1], plots[1:]]


def test_shapes_of_the_loss_have_equal_counts_of_clips_and_captions():
    named = [*sizes.NAMED["aligned_info_nce"], *sizes.AXES]
    shapes = [shape for name in named for shape in sizes.shapes("aligned_info_nce", name)]
    assert shapes and all(shape.clips == shape.captions for shape in shapes)


def test_leftovers_of_an_interrupted_pip_install_are_ignored(tmp_path, monkeypatch):
    (tmp_path / "gone-1.0.dist-info").mkdir()
    (tmp_path / "inf_cl-9.9.dist-info").mkdir()
    (tmp_path / "inf_cl-9.9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: inf_cl\nVersion: 9.9\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert libraries() == {"inf-cl": "9.9"}
