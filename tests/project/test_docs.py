"""What the pages say: every public name in the reference, commands that parse, and figures that were measured."""

import ast
import importlib
import inspect
import json
import re
import shlex
import statistics
from pathlib import Path

import pytest

from atk.cli.commands import parse

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
REFERENCE = re.findall(
    r"^::: (\S+)$", "\n".join(page.read_text() for page in PAGES if page.parent.name == "api"), re.MULTILINE
)


@pytest.mark.parametrize("module", ["atk", "atk.nn", "atk.data", "atk.soundscapes", "atk.plan"])
def test_every_public_name_is_in_the_reference(module):
    public = {f"{module}.{name}" for name in importlib.import_module(module).__all__} - {"atk.nn"}
    assert public <= set(REFERENCE)


@pytest.mark.parametrize("name", REFERENCE)
def test_names_in_the_reference_exist_and_have_docstrings(name):
    module, _, attribute = name.rpartition(".")
    value = getattr(importlib.import_module(module), attribute)
    if not callable(value):
        return
    assert value.__doc__
    for member, definition in vars(value).items() if inspect.isclass(value) else ():
        if not member.startswith("_") and (
            inspect.isfunction(definition) or isinstance(definition, property | classmethod)
        ):
            assert definition.__doc__, member


def commands():
    """The lines of the pages' shell blocks, with continued lines joined and without comments."""
    for page in PAGES:
        for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                yield shlex.split(line, comments=True)


def atk_commands():
    """The words after `atk` or `torchrun ... -m atk`."""
    return [words[words.index("atk") + 1 :] for words in commands() if "atk" in words]


@pytest.mark.parametrize("argv", atk_commands(), ids=" ".join)
def test_commands_of_the_pages_parse(argv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN").mkdir()
    (tmp_path / "RUN" / "config.yaml").write_text("seed: 1\n")
    parse(argv)


def test_flags_of_the_examples_exist():
    checked = 0
    for words in commands():
        if script := next((word for word in words if word.startswith("examples/")), None):
            known = {
                node.value for node in ast.walk(ast.parse((ROOT / script).read_text())) if type(node) is ast.Constant
            }
            assert {word for word in words if word.startswith("--")} <= known, script
            checked += 1
    assert checked >= 6


def measured(name, *, dtype="float32", mode="step"):
    """{size: {provider: its row}} of a saved benchmark."""
    tables = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["tables"]
    return {
        table["size"]: {row["provider"]: row for row in table["rows"]}
        for table in tables
        if (table["dtype"], table["kind"]) == (dtype, mode)
    }


def test_readme_quotes_the_measured_numbers():
    (float32,), (bfloat16,) = (measured("max_mean_cpu", dtype=dtype).values() for dtype in ("float32", "bfloat16"))
    readme = (ROOT / "README.md").read_text()
    for label, provider in {
        "naive einsum": "naive einsum",
        "late-interaction-kernels 0.4.5": "late-interaction-kernels",
        "`atk.max_mean_similarity`": "atk auto",
        "the forward's matrix products alone, at the rate of PyTorch's matmul": "limit",
    }.items():
        peak = float32[provider]["peak_mib"]
        memory = "" if peak is None else f"{peak:.0f} MiB "
        times = [f"{row[provider]['median_ms']:.0f} ms" for row in (float32, bfloat16)]
        assert f"| {label} | {' | '.join(times)} | {memory}|" in readme


def test_cross_attention_page_quotes_the_measured_numbers():
    thesis, long = (measured("cross_attention_cpu")[size] for size in ("thesis", "long_audio"))
    plain, default, ours = (
        "nn.MultiheadAttention, need_weights=False",
        "nn.MultiheadAttention, default call",
        "atk sdpa",
    )
    page = " ".join((ROOT / "docs" / "cross_attention.md").read_text().split())
    speeds = [
        f"{rows[slow]['median_ms'] / rows[ours]['median_ms']:.2f} times"
        for rows, slow in ((thesis, plain), (long, plain), (long, default))
    ]
    memory = [f"{long[name]['peak_mib']:.0f}" for name in (ours, plain, default)]
    assert f"768 channels, {speeds[0]} the speed" in page
    assert f"256 channels, {speeds[1]} its speed, and {speeds[2]} that of its default call" in page
    assert "with {} MiB against {} and {}.".format(*memory) in page


def test_benchmarks_page_quotes_the_measured_numbers():
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    for label, size in {"thesis": "thesis", "ColBERT": "colbert", "a minute": "long_audio", "CLAP": "clap_256"}.items():
        rows = measured("max_mean_sizes_cpu")[size]
        naive, other, ours = (rows[name] for name in ("naive einsum", "late-interaction-kernels", "atk auto"))
        speeds = [f"{row['median_ms'] / ours['median_ms']:.1f}" for row in (naive, other)]
        memory = [f"{row['peak_mib']:,.0f} MiB" for row in (naive, ours)]
        (line,) = (line for line in page.splitlines() if line.startswith(f"| {label}"))
        assert line.endswith(f" | {' | '.join(speeds + memory)} |")


def test_integrations_page_quotes_the_measured_numbers():
    results = json.loads((ROOT / "benchmarks" / "results" / "integrations_wall.json").read_text())
    page = (ROOT / "docs" / "integrations.md").read_text()
    for batch, rows in results["batches"].items():
        for variant in ("sentence-transformers", "with atk"):
            row = rows[variant]
            growth = row["peak_mib"] - row["before_mib"]
            assert f"| {batch} | {variant} | {row['seconds']:.1f} s | {growth:,.0f} MiB |" in page


def test_integrations_page_names_the_versions_that_are_accepted():
    page = (ROOT / "docs" / "integrations.md").read_text()
    tested = json.loads((ROOT / "tests" / "integrations" / "versions.json").read_text())
    for module, result in tested.items():
        (row,) = (line for line in page.splitlines() if line.startswith("|") and f"| `{module}`" in line)
        first, *_, last = (*result["versions"], *result["versions"])
        assert first in row and last in row, row
        assert all(counts.keys() == {"passed"} for counts in result["versions"].values()), module


def test_info_nce_page_quotes_the_measured_numbers():
    page = (ROOT / "docs" / "info_nce.md").read_text()
    for pairs, size in {"1,024": "clap_1024", "4,096": "clap_4096", "8,192": "batch_8192"}.items():
        for dtype in ("float32", "bfloat16"):
            rows = measured("info_nce_cpu", dtype=dtype)[size]
            names = "atk chunked", "naive F.cross_entropy", "torch.compile of F.cross_entropy"
            ours, naive, compiled = (rows[name] for name in names)
            ratios = [f"{row['median_ms'] / ours['median_ms']:.2f}" for row in (naive, compiled, rows["limit"])]
            memory = [f"{row['peak_mib']:,.0f}" for row in (ours, naive, compiled)]
            assert f"| {pairs}, {dtype} | {' | '.join(ratios)} | {', '.join(memory)} MiB |" in page


def test_data_page_tells_which_loader_is_faster():
    assert "more 10-s crops per second than a loop around `soundfile`" in (ROOT / "docs" / "data.md").read_text()
    results = json.loads((ROOT / "benchmarks" / "results" / "data_loading.json").read_text())["rates"]
    for rates in results.values():
        speed = {name: statistics.median(values) for name, values in rates.items()}
        assert speed["atk, files"] > speed["soundfile, files"]
        assert speed["atk, tar shard"] > speed["webdataset, tar shard"]
    assert list(results) == ["wav", "flac", "ogg", "mp3"]


def test_kernels_page_quotes_the_measured_numbers():
    page = (ROOT / "docs" / "kernels.md").read_text()

    def times(mode):
        return [measured("max_mean_cpu", dtype=dtype, mode=mode)["batch_128"] for dtype in ("float32", "bfloat16")]

    def row(label, slow, slow_name, fast, fast_name):
        cells = [
            f"{a[slow_name]['median_ms'] / b[fast_name]['median_ms']:.1f}" for a, b in zip(slow, fast, strict=True)
        ]
        return f"| {label} | {cells[0]} | | {cells[1]} |"

    steps, ragged_steps = times("step"), times("ragged_step")
    assert row("forward and backward, speedup over the einsum", steps, "naive einsum", steps, "atk cpp") in page
    recomputed = "atk cpp, winners computed again"
    assert row("the same with recomputed winners", steps, "naive einsum", steps, recomputed) in page
    assert row("forward and backward on these captions", steps, "atk cpp", ragged_steps, "atk cpp, masks") in page
    forwards, label = (
        times("forward"),
        "forward on captions of 6 to 32 tokens (mean 12), speedup over 32 tokens each",
    )
    assert row(label, forwards, "atk cpp", times("ragged_forward"), "atk cpp, masks") in page
    rates = forwards[0]["atk cpp"], forwards[0]["atk cpp, int8 screening off"], forwards[1]["atk cpp"]
    assert f"matmul | {' | '.join(format(rate['of_limit'], '.2f') for rate in rates)} |" in page
