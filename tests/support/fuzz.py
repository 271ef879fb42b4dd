"""Variants of valid files, and what the readers make of them: the right result, or an error that names the file.

    python tests/support/fuzz.py [--variants 2000] [--seed 0] [KIND ...]

prints how many variants of each kind were read and how many were refused, the slowest one, and every other outcome.
"""

import argparse
import contextlib
import pickle
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.processes import Job  # after the path has been set

PER_PROCESS = 250  # variants
SECONDS = 20.0  # time limit of one variant
MEMORY = 3 << 30  # limit of the address space above what the process has at the start, in bytes


class Format(NamedTuple):
    """Files of a kind.

    `make(folder)` writes valid files and returns the ones to spoil. `read(path)` reads what `make` wrote, after
    the file `path` was spoiled, and checks the result.
    """

    make: Callable[[Path], list[Path]]
    read: Callable[[Path], None]


class Outcome(NamedTuple):
    """What became of a variant: "read", "refused", or else what went wrong."""

    status: str
    seconds: float
    detail: str = ""


def spoiled(content: bytes, other: bytes, draw: random.Random) -> bytes:
    """`content` with bytes flipped, set, cut, repeated, or replaced by some of `other`, mostly near its start."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        end = max(1, len(data))
        at = draw.randrange(min(end, draw.choice((16, 64, 256, end))))
        size = draw.choice((1, 1, 2, 4, 8, draw.randrange(1, 1 + end)))
        few = data[at : at + min(size, 8)]
        start = draw.randrange(len(other) + 1)
        changes = [  # (how many bytes to replace from `at` on, replacement)
            (len(few), bytes(byte ^ 1 << draw.randrange(8) for byte in few)),
            (len(few), bytes(draw.choice((0, 1, 0x7F, 0x80, 0xFF)) for _ in few)),
            (end, b""),
            (size, b""),
            (0, data[at : at + size]),
            (0, draw.randbytes(min(size, 64))),
            (size, other[start : start + size]),
            (size, bytes(min(size, end - at))),
            (end, other[start:]),
        ]
        count, replacement = draw.choice(changes)
        data[at : at + count] = replacement
    return bytes(data)


def outcomes(name: str, variants: int, seed: int) -> list[Outcome]:
    """Read `variants` variants of the kind `name` in separate processes, so that a crash ends only one of them."""
    results: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        while len(results) < variants:
            first, end = len(results), min(variants, len(results) + PER_PROCESS)
            report = Path(folder, str(first))
            job = Job("support.fuzz:read_variants", name, first, end, seed, str(report))
            job.wait((end - first) * SECONDS)
            with report.open("rb") as file, contextlib.suppress(EOFError):
                while True:
                    results.append(pickle.load(file))
            if len(results) < end:
                results.append(Outcome("crashed", 0.0, f"variant {len(results)}: {job.output[-200:]}"))
    return results


def read_variants(name: str, first: int, end: int, seed: int, report: str) -> None:
    """Read the variants from `first` to `end - 1` and write their outcomes to `report`."""
    from support.fuzz_kinds import KINDS

    form = KINDS[name]
    with Path(report).open("wb") as results, tempfile.TemporaryDirectory() as folder:
        files = form.make(Path(folder))
        contents = [path.read_bytes() for path in files]
        form.read(files[0])
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        for index in range(first, end):
            draw = random.Random(f"{seed} {index}")
            place = draw.randrange(len(files))
            files[place].write_bytes(spoiled(contents[place], draw.choice(contents), draw))
            pickle.dump(_outcome(form, files[place], Path(folder)), results)
            results.flush()
            files[place].write_bytes(contents[place])


def _outcome(form: Format, path: Path, folder: Path) -> Outcome:
    def expire(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    start = time.perf_counter()
    detail = path.name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            form.read(path)
        status = "read"
    except (ValueError, FileNotFoundError) as error:
        names = [path.name, *map(str, path.parents[: -len(folder.parents)])]
        status = "refused" if any(name in str(error) for name in names) else "unnamed"
        detail = f"{path.name}: {type(error).__name__}: {error}"
    except BaseException as error:  # noqa: BLE001  # anything else is a finding
        status, detail = "wrong", f"{path.name}: {type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return Outcome(status, time.perf_counter() - start, " ".join(detail.split())[:300])


def main() -> None:
    """Fuzz the kinds named on the command line."""
    from support.fuzz_kinds import KINDS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--variants", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print("| kind | variants | read | refused | other | slowest (s) |\n|---|---|---|---|---|---|")
    for name in arguments.kinds:
        results = outcomes(name, arguments.variants, arguments.seed)
        counts = Counter(result.status for result in results)
        others = [result for result in results if result.status not in ("read", "refused")]
        slowest = max(results, key=lambda result: result.seconds)
        figures = f"{len(results)} | {counts['read']} | {counts['refused']} | {len(others)} | {slowest.seconds:.2f}"
        print(f"| {name} | {figures} |")
        if slowest.seconds > 1:
            print(f"    variant {results.index(slowest)} of {slowest.detail}")
        for detail, count in Counter(f"{other.status} {other.detail[:160]}" for other in others).most_common(12):
            print(f"    {count} x {detail}", flush=True)


if __name__ == "__main__":
    main()
