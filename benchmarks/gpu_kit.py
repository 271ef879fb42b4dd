"""What `gpu.sh` does in Python: small calls of every kernel, the profile, and the page of ratios.

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
from torch.profiler import ProfilerActivity

import atk
from atk.bench import report, sizes
from atk.bench.measure import OK

STEPS = {  # op: size and kind of the step that is profiled
    "max_mean_similarity": ("clap_1024", "step"),
    "aligned_info_nce": ("clap_1024", "ragged_step"),
    "info_nce": ("batch_16384", "step"),
    "cross_attention_difference": ("thesis", "step"),
    "aligned_train_step": ("clap_256", "step"),
}
OURS = re.compile(r"[a-z_]+_kernel|atk::\w+")  # the GPU's names of Triton kernels; without a GPU those of the ops
LONGEST_TABLE, SLOWEST = 8, 3
METRICS = {  # of Nsight Compute: title
    "gpu__time_duration.sum": "time",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "SM",
    "gpu__compute_memory_throughput.avg.pct_of_peak_sustained_elapsed": "memory",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "DRAM",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps active",
    "launch__registers_per_thread": "registers",
}


def calls(device: torch.device) -> None:
    """Every kernel once or more at tiny sizes, forward and backward, for tools that watch each access to memory."""
    dtype = _dtype(device)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device).to(dtype).requires_grad_()

    def mask(n: int, length: int) -> torch.Tensor:
        return torch.arange(length, device=device) < torch.linspace(1, length, n, device=device).long()[:, None]

    def max_mean() -> None:
        for tokens, saved in ((150, False), (6, True)):  # several tiles for a caption, several captions in a tile
            sides, masks = (draw(3, 9, 40), draw(3, tokens, 40)), (mask(3, 9), mask(3, tokens))
            options = {"normalize": saved, "save_index": saved, "backend": "triton"}
            atk.max_mean_similarity(*sides, *masks, **options).sum().backward()
        atk.max_mean_similarity_pairs(*sides, *masks, **options).sum().backward()
        atk.aligned_info_nce(*sides, 0.1, *masks, skip_below=1e-3, backend="triton").backward()

    def info_nce() -> None:
        scale = torch.tensor(5.0, device=device, requires_grad=True)
        atk.info_nce(draw(150, 40), draw(150, 40), scale, backend="triton").backward()

    def difference() -> None:
        sides = draw(3, 20, 40), draw(3, 20, 40), draw(3, 70, 40), draw(3, 70, 40)
        width = draw(40, 40), draw(40), mask(3, 70)
        atk.cross_attention_difference(*sides, *width, num_heads=2, backend="triton").sum().backward()

    failed = []
    for call in (max_mean, info_nce, difference):
        try:
            call()
            _wait(device)
        except Exception:  # the others' kernels are to be watched all the same
            traceback.print_exc()
            failed.append(call.__name__)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def step_of(op: str, tiny: bool, device: torch.device) -> Callable[[], Sequence[torch.Tensor]]:
    """One step of the op through its Triton backend, on random inputs."""
    size, kind = STEPS[op]
    shape = sizes.NAMED[op]["tiny" if tiny else size]
    case = importlib.import_module(f"atk.bench.{op}").case(shape, kind, _dtype(device), device)
    provider = next(each for each in case.providers if each.name.startswith("atk triton"))
    if provider.missing:
        raise RuntimeError(f"{op}: {provider.missing}")
    return lambda: provider.call(*case.inputs)


def profile(ops: Iterable[str], tiny: bool, device: torch.device, out: Path) -> None:
    """Writes profile.md, the kernels of a step of each op by their time, and slowest.txt for Nsight Compute.

    slowest.txt has three lines: the names of our slowest kernels joined by `|`, their ops, what to measure.
    """
    gpu = device.type == "cuda"
    page = [] if gpu else ["Without a GPU: PyTorch's ops, by their own time on the CPU."]
    slowest, failed = [], []
    for op in ops:
        title = f"### {op}, {'tiny' if tiny else STEPS[op][0]}"
        try:
            rows = _profiled(step_of(op, tiny, device), device)
        except ImportError as error:  # the model of the training step takes more than torch
            page.append(f"{title}: not here\n\n{error}")
        except Exception as error:  # the others are to be profiled all the same
            traceback.print_exc()
            failed.append(op)
            page.append(f"{title}: failed\n\n{(str(error).strip() or type(error).__name__).splitlines()[0]}")
        else:
            page.append(f"{title}: {_table_of(rows, 'kernel' if gpu else 'op')}")
            slowest += [(ms, name, op) for ms, name, _ in rows if OURS.fullmatch(name)]
        (out / "profile.md").write_text("\n\n".join(page) + "\n")  # what there is, should the time run out
        _write_slowest(slowest, out)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def _profiled(step: Callable[[], object], device: torch.device) -> list[tuple[float, str, int]]:
    """Milliseconds, name and calls of what a step runs on the device, the slowest first."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
        for _ in range(2):  # compiles, fills the allocator
            step()
        _wait(device)
    with torch.profiler.profile(activities=activities) as profiler:
        step()
        _wait(device)
    events = (
        event for event in profiler.key_averages() if (event.device_type == DeviceType.CUDA) == (device.type == "cuda")
    )
    return sorted(((_own_us(event) / 1e3, event.key, event.count) for event in events), reverse=True)


def _table_of(rows: list[tuple[float, str, int]], unit: str) -> str:
    """The time of the whole step, and under it a table of what takes most."""
    whole = sum(ms for ms, _, _ in rows)
    if not whole:
        return f"no {unit} was recorded"  # as where CUPTI has no permission
    lines = [f"{whole:.2f} ms\n", f"| {unit} | calls | ms | share |", "|---|---:|---:|---:|"]
    for ms, name, count in rows[:LONGEST_TABLE]:
        lines.append(f"| {_short(name)} | {count} | {ms:.3f} | {ms / whole:.0%} |")
    return "\n".join(lines)


def _write_slowest(slowest: list[tuple[float, str, str]], out: Path) -> None:
    names = {}
    for _, name, op in sorted(slowest, reverse=True):
        names.setdefault(name, op)
    first = list(names)[:SLOWEST]
    lines = "|".join(first), " ".join(dict.fromkeys(names[name] for name in first)), ",".join(METRICS)
    (out / "slowest.txt").write_text("\n".join(lines) + "\n")


def _own_us(event) -> float:
    return event.self_device_time_total if event.device_type == DeviceType.CUDA else event.self_cpu_time_total


def _short(name: str) -> str:
    name = name.replace("|", "\\|")
    return name if len(name) <= 90 else name[:87] + "..."


def counters(path: Path) -> str:
    """The table of Nsight Compute's CSV log: the last launch of each kernel; without one the errors in it."""
    lines = path.read_text().splitlines()
    start = next((k for k, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    kernels = defaultdict(dict)
    for row in csv.DictReader(lines[start:]):
        kernels[row["Kernel Name"]][row["Metric Name"]] = f"{row['Metric Value']} {row['Metric Unit']}".strip()
    if not kernels:  # as where the user may not read the GPU's counters
        return "\n".join(["None was measured.", *(line for line in lines if line.startswith("==ERROR=="))])
    table = [f"| kernel | {' | '.join(METRICS.values())} |", "|---|" + "---:|" * len(METRICS)]
    for name, values in kernels.items():
        table.append(f"| {_short(name)} | {' | '.join(values.get(metric, '') for metric in METRICS)} |")
    return "\n".join(table)


def ratios(out: Path) -> str:
    """A line for each case that was timed: our fastest row beside the others; and the rates of the machine."""
    lines, machine = [], ""
    for path in sorted(out.glob("bench_*.json"), key=lambda path: path.stat().st_mtime):
        for table in report.read(path):
            *rows, limit = table.rows
            machine = machine or limit.note.partition(";")[0]
            ours = [row for row in rows if row.provider.startswith("atk ") and row.provider != "atk reference"]
            best = min((row for row in ours if row.status == OK), key=lambda row: row.median_ms, default=None)
            shape = " x ".join(f"{value:g}" for value in table.shape.values())
            line = f"{table.op} {table.kind}, {table.size} ({shape}), {table.dtype}"
            if best is None:
                states = ", ".join(f"{row.provider}: {row.status}" for row in ours)
                lines.append(f"| {line} | none ran: {states} | | | |")
                continue
            others = [_factor(row, best.median_ms) for row in rows if not row.provider.startswith("atk ")]
            bound = limit.note.rpartition("bound by ")[2]
            share = f"{best.of_limit:.2f} ({bound})"
            lines.append(
                f"| {line} | {best.provider} | {best.median_ms:.3f} | {'; '.join(filter(None, others))} | {share} |"
            )
    if not lines:
        return "Nothing was timed."
    head = ["| case | our fastest | ms | others' time over ours | of the limit |", "|---|---|---:|---|---:|"]
    return "\n".join([f"Rates of this machine: {machine}.\n", *head, *lines])


def _factor(row, ms: float) -> str:
    """How many times as long another row takes; why it has no time; nothing where its library is not here."""
    if row.status == "missing":
        return ""
    return f"{row.provider} {row.median_ms / ms:.3g}x" if row.status == OK else f"{row.provider}: {row.status}"


def machine() -> str:
    """What the numbers depend on, a line each; the commit is known to `gpu.sh`."""
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
    """The part of the summary that is read off the results in a folder."""
    parts = ["## Key ratios", "Medians. `of the limit` names what bounds it.", ratios(out)]
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
    parser.add_argument("--ops", nargs="+", choices=STEPS, default=list(STEPS), help="whose step (all)")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder of results")
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.what == "machine" and device.type == "cuda" and not torch.cuda.is_available():
        parser.exit(3, "gpu.sh needs a CUDA GPU, and torch sees none; DRY_RUN=1 goes through the steps without\n")
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
