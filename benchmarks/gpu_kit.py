"""The parts of `gpu.sh` in Python: small calls of every kernel, the profile, and the page of ratios.

python benchmarks/gpu_kit.py calls|profile|once|machine|page --help
"""

import argparse
import csv
import importlib
import re
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity

import atk
from atk.bench import report, sizes
from atk.bench.measure import MISSING, OK, Row

STEPS = {  # op: size and mode of the step that is profiled
    "max_mean_similarity": ("clap_1024", "step"),
    "aligned_info_nce": ("clap_1024", "ragged_step"),
    "info_nce": ("batch_16384", "step"),
    "sigmoid_loss": ("batch_16384", "step"),
    "cross_attention_difference": ("thesis", "step"),
    "aligned_train_step": ("clap_256", "step"),
}
OURS = re.compile(r"[a-z_]+_kernel|atk::\w+")  # names of Triton kernels in a GPU profile; of the ops without a GPU
LONGEST_TABLE, SLOWEST = 8, 3
METRICS = {  # metric of Nsight Compute: title
    "gpu__time_duration.sum": "time",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "SM",
    "gpu__compute_memory_throughput.avg.pct_of_peak_sustained_elapsed": "memory",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "DRAM",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps active",
    "launch__registers_per_thread": "registers",
}


def calls(device: torch.device) -> None:
    """Call every kernel at tiny sizes, forward and backward, for tools that check each memory access."""
    dtype = _dtype(device)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device).to(dtype).requires_grad_()

    def mask(n: int, length: int) -> torch.Tensor:
        return torch.arange(length, device=device) < torch.linspace(1, length, n, device=device).long()[:, None]

    def max_mean() -> None:
        audio, audio_mask = draw(3, 9, 40), mask(3, 9)
        text, text_mask = draw(3, 150, 40), mask(3, 150)  # several tiles per caption
        sim = atk.max_mean_similarity(audio, text, audio_mask, text_mask, save_index=False, backend="triton")
        sim.sum().backward()
        text, text_mask = draw(3, 6, 40), mask(3, 6)  # several captions per tile
        for op in (atk.max_mean_similarity, atk.max_mean_similarity_pairs):
            sim = op(audio, text, audio_mask, text_mask, normalize=True, save_index=True, backend="triton")
            sim.sum().backward()
        loss = atk.aligned_info_nce(audio, text, 0.1, audio_mask, text_mask, skip_below=1e-3, backend="triton")
        loss.backward()

    def global_losses() -> None:
        scale, bias = torch.tensor([5.0, -2.0], device=device, requires_grad=True)
        atk.info_nce(draw(150, 40), draw(150, 40), scale, backend="triton").backward()
        atk.sigmoid_loss(draw(150, 40), draw(150, 40), scale, bias, backend="triton").backward()

    def cross_attention() -> None:
        frames = draw(3, 20, 40), draw(3, 20, 40), draw(3, 70, 40), draw(3, 70, 40)
        projection = draw(40, 40), draw(40)
        difference = atk.cross_attention_difference(*frames, *projection, mask(3, 70), num_heads=2, backend="triton")
        difference.sum().backward()

    failed = []
    for call in (max_mean, global_losses, cross_attention):
        try:
            call()
            _wait(device)
        except Exception:  # noqa: BLE001 (the kernels of the other ops are still checked)
            traceback.print_exc()
            failed.append(call.__name__)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def step_of(op: str, tiny: bool, device: torch.device) -> Callable[[], Sequence[torch.Tensor]]:
    """One step of the op through its Triton backend, on random inputs."""
    size, mode = STEPS[op]
    shape = sizes.NAMED[op]["tiny" if tiny else size]
    case = importlib.import_module(f"atk.bench.{op}").case(shape, mode, _dtype(device), device)
    provider = next(provider for provider in case.providers if provider.name.startswith("atk triton"))
    if provider.missing:
        raise RuntimeError(f"{op}: {provider.missing}")
    return lambda: provider.call(*case.inputs)


def profile(ops: Iterable[str], tiny: bool, device: torch.device, out: Path) -> None:
    """Write profile.md (the kernels in a step of each op, by time) and slowest.txt (for Nsight Compute).

    slowest.txt has three lines: the names of our slowest kernels joined by `|`, their ops, and the metrics.
    """
    gpu = device.type == "cuda"
    page = [] if gpu else ["Without a GPU: PyTorch ops by self time on the CPU."]
    slowest, failed = [], []
    for op in ops:
        title = f"### {op}, {'tiny' if tiny else STEPS[op][0]}"
        try:
            rows = profiled(step_of(op, tiny, device), device)
        except ImportError as error:  # the model of the training step needs more than torch
            page.append(f"{title}: not available\n\n{error}")
        except Exception as error:  # noqa: BLE001 (the other ops are still profiled)
            traceback.print_exc()
            failed.append(op)
            page.append(f"{title}: failed\n\n{(str(error).strip() or type(error).__name__).splitlines()[0]}")
        else:
            page.append(f"{title}: {_table_of(rows, 'kernel' if gpu else 'op')}")
            slowest += [(ms, name, op) for ms, name, _ in rows if OURS.fullmatch(name)]
        (out / "profile.md").write_text("\n\n".join(page) + "\n")  # the results so far, in case the time runs out
        _write_slowest(slowest, out)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def profiled(step: Callable[[], object], device: torch.device) -> list[tuple[float, str, int]]:
    """Milliseconds, name, and count of each kernel or op that a step runs on the device, the slowest first."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
        for _ in range(2):  # compile the kernels and fill the allocator's cache
            step()
        _wait(device)
    with torch.profiler.profile(activities=activities) as profiler:
        step()
        _wait(device)
    events = (
        event for event in profiler.key_averages() if (event.device_type == DeviceType.CUDA) == (device.type == "cuda")
    )
    return sorted(((_self_us(event) / 1e3, event.key, event.count) for event in events), reverse=True)


def _table_of(rows: list[tuple[float, str, int]], unit: str) -> str:
    """The time of the step, and a table of what takes most of it."""
    total = sum(ms for ms, _, _ in rows)
    if not total:
        return f"no {unit} was recorded"  # for example without permission to use CUPTI
    lines = [f"{total:.2f} ms\n", f"| {unit} | calls | ms | share |", "|---|---:|---:|---:|"]
    for ms, name, count in rows[:LONGEST_TABLE]:
        lines.append(f"| {_short(name)} | {count} | {ms:.3f} | {ms / total:.0%} |")
    return "\n".join(lines)


def _write_slowest(slowest: list[tuple[float, str, str]], out: Path) -> None:
    ops: dict[str, str] = {}
    for _, name, op in sorted(slowest, reverse=True):
        ops.setdefault(name, op)
    names = list(ops)[:SLOWEST]
    lines = "|".join(names), " ".join(dict.fromkeys(ops[name] for name in names)), ",".join(METRICS)
    (out / "slowest.txt").write_text("\n".join(lines) + "\n")


def _self_us(event: FunctionEventAvg) -> float:
    return event.self_device_time_total if event.device_type == DeviceType.CUDA else event.self_cpu_time_total


def _short(name: str) -> str:
    name = name.replace("|", "\\|")
    return name if len(name) <= 90 else name[:87] + "..."


def counters(path: Path) -> str:
    """Table of the last launch of each kernel in Nsight Compute's CSV log; the log's errors if it has no launch."""
    lines = path.read_text().splitlines()
    start = next((k for k, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    kernels: dict[str, dict[str, str]] = defaultdict(dict)
    for row in csv.DictReader(lines[start:]):
        kernels[row["Kernel Name"]][row["Metric Name"]] = f"{row['Metric Value']} {row['Metric Unit']}".strip()
    if not kernels:  # for example without permission to read the GPU's counters
        return "\n".join(["None was measured.", *(line for line in lines if line.startswith("==ERROR=="))])
    table = [f"| kernel | {' | '.join(METRICS.values())} |", "|---|" + "---:|" * len(METRICS)]
    for name, values in kernels.items():
        table.append(f"| {_short(name)} | {' | '.join(values.get(metric, '') for metric in METRICS)} |")
    return "\n".join(table)


def ratios(out: Path) -> str:
    """The rates of the machine, and for each case our fastest row against the others."""
    lines: list[str] = []
    rates = ""
    for path in sorted(out.glob("bench_*.json"), key=lambda path: path.stat().st_mtime):
        for table in report.read(path):
            *rows, limit = table.rows
            rates = rates or limit.note.partition(";")[0]
            ours = [row for row in rows if row.provider.startswith("atk ") and row.provider != "atk reference"]
            shape = " x ".join(f"{value:g}" for value in table.shape.values())
            line = f"{table.op} {table.kind}, {table.size} ({shape}), {table.dtype}"
            if not any(row.status == OK for row in ours):
                states = ", ".join(f"{row.provider}: {row.status}" for row in ours)
                lines.append(f"| {line} | none ran: {states} | | | |")
                continue
            best = min((row for row in ours if row.status == OK), key=lambda row: row.ms)
            others = [_factor(row, best.ms) for row in rows if not row.provider.startswith("atk ")]
            bound = limit.note.rpartition("bound by ")[2]
            fraction = f"{best.of_limit:.2f} ({bound})"
            lines.append(
                f"| {line} | {best.provider} | {best.ms:.3f} | {'; '.join(filter(None, others))} | {fraction} |"
            )
    if not lines:
        return "Nothing was timed."
    head = ["| case | our fastest | ms | others' time over ours | fraction of limit |", "|---|---|---:|---|---:|"]
    return "\n".join([f"Rates of this machine: {rates}.\n", *head, *lines])


def _factor(row: Row, ms: float) -> str:
    """The time of a row relative to `ms`, or its status; empty if its library is missing."""
    if row.status == MISSING:
        return ""
    return f"{row.provider} {row.ms / ms:.3g}x" if row.status == OK else f"{row.provider}: {row.status}"


def machine() -> str:
    """What the measurements depend on, one line each; `gpu.sh` adds the commit."""
    facts = {name: value for name, value in report.environment().items() if name != "commit"}
    facts["CUDA of torch"] = torch.version.cuda or "none"
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts["compute capability"] = f"{properties.major}.{properties.minor}"
        facts["multiprocessors"] = properties.multi_processor_count
        facts["memory"] = f"{properties.total_memory >> 20} MiB"
    facts["other libraries"] = ", ".join(f"{name} {value}" for name, value in report.libraries().items()) or "none"
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def page(out: Path) -> str:
    """The part of the summary that is computed from the results in a folder."""
    legend = "Times are medians. `fraction of limit`: the limit's time divided by ours, and what sets the limit."
    parts = ["## Key ratios", legend, ratios(out)]
    log = out / "ncu.csv"
    if log.is_file():
        parts += ["## Counters of the slowest kernels", counters(log)]
    return "\n\n".join(parts) + "\n"


def _dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32  # the interpreter's bfloat16 is wrong


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("calls", "profile", "once", "machine", "page"))
    parser.add_argument("--ops", nargs="+", choices=STEPS, default=list(STEPS), help="ops to run (all)")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the results")
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.what == "machine" and device.type == "cuda" and not torch.cuda.is_available():
        parser.exit(3, "gpu.sh needs a CUDA GPU, and torch sees none; DRY_RUN=1 runs the steps without one\n")
    torch.manual_seed(0)
    if options.what == "calls":
        calls(device)
    elif options.what == "profile":
        profile(options.ops, options.tiny, device, options.out)
    elif options.what == "once":
        for op in options.ops:
            step_of(op, options.tiny, device)()
        _wait(device)
    else:
        print(machine() if options.what == "machine" else page(options.out))


if __name__ == "__main__":
    main()
