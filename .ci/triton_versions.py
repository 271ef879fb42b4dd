"""Compiles the Triton kernels with each minor version of Triton that pyproject.toml allows, for each GPU architecture.

Reports register spills, kernels that need more shared memory than the architecture has, and failures of the compiler,
and exits with status 1 if there are any. Takes hours, so limit it while you work:

    python .ci/triton_versions.py --versions 3.4.0 3.9.0 --archs sm_90 --dtypes bfloat16 --kernels forward

Each version is installed into a folder of its own that comes first on the path; everything else, including PyTorch, is
that of the environment. Compiled kernels are kept in build/triton, so that another run compiles only what has changed.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "triton"
ARCHS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
DTYPES = ("float32", "bfloat16", "float16")


def declared_versions() -> list[str]:
    """The last release of each minor version in the range of pyproject.toml, oldest first."""
    requirement = re.search(r'^triton = \["triton([^;"]+)', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    if requirement is None:
        raise SystemExit("pyproject.toml has no extra that requires triton")
    allowed = SpecifierSet(requirement[1])
    pip = [sys.executable, "-m", "pip", "index", "versions", "triton"]
    listing = subprocess.run(pip, check=True, text=True, capture_output=True).stdout
    found = re.search(r"Available versions: (.*)", listing)
    if found is None:
        raise SystemExit(f"cannot read the versions that pip lists: {listing!r}")
    last: dict[tuple[int, int], Version] = {}
    for version in sorted(map(Version, found[1].split(", "))):
        if version in allowed:
            last[version.major, version.minor] = version
    return [str(version) for version in last.values()]


def install(version: str) -> None:
    """Installs one version of Triton into a folder of its own, without its dependencies."""
    if not (BUILD / version / "triton").exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-deps", "--target", BUILD / version, f"triton=={version}"], check=True)


def report(version: str, arch: str, options: argparse.Namespace) -> list[dict[str, object]]:
    """Compiles the cases in processes with this version. A process that the compiler crashes is replaced."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(BUILD / version), str(ROOT)]),
        "TRITON_CACHE_DIR": str(BUILD / f"cache-{version}"),
    }
    rows: list[dict[str, object]] = []
    while True:
        worker = [sys.executable, __file__, "--worker", version, arch, str(len(rows))]
        limits = [*("--dtypes", *options.dtypes), *(("--kernels", *options.kernels) if options.kernels else ())]
        result = subprocess.run([*worker, *limits], check=False, env=environment, text=True, capture_output=True)
        rows += [json.loads(line) for line in result.stdout.splitlines() if line.startswith('{"case"')]
        if result.returncode == 0:
            return rows
        if result.returncode > 0:
            raise SystemExit(f"Triton {version}, {arch}: {result.stderr}")
        rows.append({"case": str(len(rows)), "error": f"the compiler died with signal {-result.returncode}"})


def compile_cases(version: str, arch: str, first: int, options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """In a process with this version: compiles the representative cases from number `first` on."""
    import torch
    import triton

    from atk.kernels.compile import SHARED_MEMORY, compile_usage
    from atk.kernels.compile_cases import representative_cases
    from atk.kernels.compile_signatures import compile_arguments

    if triton.__version__ != version:
        raise SystemExit(f"imports Triton {triton.__version__}")
    capability = (int(arch[3:-1]), int(arch[-1]))
    dtypes = [getattr(torch, name) for name in options.dtypes]
    cases = [case for case in representative_cases(dtypes) if not options.kernels or case.kernel in options.kernels]
    unique = {str(compile_arguments(case, capability)): case for case in reversed(cases)}
    for case in list(reversed(unique.values()))[first:]:
        row: dict[str, object] = {"case": str(case)}
        try:
            registers, spills, shared = compile_usage(case, capability)
        except Exception as error:  # noqa: BLE001  # the compiler raises errors of any type
            yield row | {"error": f"{type(error).__name__}: {error}"}
        else:
            row |= {"registers": registers, "spills": spills, "shared": shared}
            yield row | {"over": shared > SHARED_MEMORY[arch]}


def main() -> None:
    """Prints what is wrong, then one line for each version and architecture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", nargs="+", help="default: the last release of each declared minor version")
    parser.add_argument("--archs", nargs="+", default=ARCHS, choices=ARCHS)
    parser.add_argument("--dtypes", nargs="+", default=DTYPES, choices=DTYPES)
    parser.add_argument("--kernels", nargs="+", help="default: all kernels")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="number of processes that compile")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        version, arch, first = options.worker
        for row in compile_cases(version, arch, int(first), options):
            print(json.dumps(row), flush=True)
        return
    versions = options.versions or declared_versions()
    for version in versions:
        install(version)
    jobs = [(version, arch) for version in versions for arch in options.archs]
    lines = [f"{'triton':8}{'arch':8}{'cases':>7}{'spills':>8}{'over shared memory':>20}{'failures':>10}"]
    wrong = False
    with ThreadPoolExecutor(options.workers) as pool:
        for (version, arch), rows in zip(jobs, pool.map(lambda job: report(*job, options), jobs), strict=True):
            bad = [row for row in rows if row.get("spills") or row.get("over") or "error" in row]
            wrong = wrong or bool(bad)
            for row in bad:
                print(version, arch, json.dumps(row), flush=True)
            spills, over, failures = (sum(bool(row.get(key)) for row in rows) for key in ("spills", "over", "error"))
            lines.append(f"{version:8}{arch:8}{len(rows):7}{spills:8}{over:20}{failures:10}")
    print("\n".join(lines))
    sys.exit(wrong)


if __name__ == "__main__":
    main()
