"""Builds csrc/ as `atk._C` when a C++ compiler is there; kernels/ becomes atk.kernels, benchmarks/harness/ atk.bench.

Ninja runs the build because every instruction set needs its own flags, which setuptools cannot give file by file.
Without a compiler, or when it fails, the installation goes on and `atk/_build_error.txt` says why.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
SOURCES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").glob("*.cpp"))
HEADERS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").glob("*.h"))
FLAGS = "-std=c++17 -O3 -DNDEBUG -fPIC -fvisibility=hidden -ffp-contract=fast -pthread -Wall -Wextra"
AVX512 = "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma"
FLAGS_BY_SUFFIX = {"bf16": f"{AVX512} -mavx512bf16 -mavx512vnni", "avx512": AVX512, "avx2": "-mavx2 -mfma"}
BUILD_ERROR = "_build_error.txt"

NINJA = """\
rule compile
  command = {cxx} {flags} $isa {extra} {includes} -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = {cxx} -shared -pthread {link_extra} $in -o $out {libraries}
"""


class BuildError(Exception):
    """Why the extension cannot be built: the first line is a sentence, further lines are the compiler's."""


class OptionalNinjaBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        module = Path(self.get_ext_fullpath(ext.name)).resolve()
        outputs = [module]
        if self.editable_mode or self._inplace_requested:
            outputs.append(ROOT / "atk" / module.name)
        try:
            compile_module(Path(self.build_temp).resolve(), module)
        except BuildError as error:
            print(f"warning: atk is installed without its C++ extension: {error}", file=sys.stderr)
            for output in outputs:  # an extension of an earlier build would run outdated code
                output.unlink(missing_ok=True)
                output.parent.mkdir(parents=True, exist_ok=True)
                output.with_name(BUILD_ERROR).write_text(f"{error}\n")
        else:
            for output in outputs:
                output.with_name(BUILD_ERROR).unlink(missing_ok=True)

    def run(self) -> None:
        self._inplace_requested = self.inplace  # setuptools clears it while it builds
        super().run()


def compile_module(folder: Path, module: Path) -> None:
    cxx, ninja, includes = find_compiler(), find_ninja(), include_folders()
    folder.mkdir(parents=True, exist_ok=True)
    module.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        NINJA.format(
            cxx=cxx,
            flags=FLAGS,
            extra=os.environ.get("CXXFLAGS", ""),
            includes=" ".join(f"-isystem {shlex.quote(path)}" for path in includes),
            link_extra=os.environ.get("LDFLAGS", ""),
            libraries="-ldl" if sys.platform == "linux" else "",
        )
    ]
    objects = []
    for source in SOURCES:
        objects.append(f"{Path(source).stem}.o")
        lines.append(f"build {objects[-1]}: compile {ninja_path(ROOT / source)}\n  isa = {isa_flags(source, cxx)}\n")
    lines.append(f"build {ninja_path(module)}: link {' '.join(objects)}\n")
    (folder / "build.ninja").write_text("".join(lines))
    result = subprocess.run([ninja, "-C", str(folder)], capture_output=True, text=True)
    if result.returncode:
        raise BuildError(f"{cxx} failed on csrc/ (is it a C++17 compiler?)\n{(result.stdout + result.stderr)[-4000:]}")


def find_compiler() -> str:
    wanted = os.environ.get("CXX")
    if wanted:
        if shutil.which(shlex.split(wanted)[0]) is None:
            raise BuildError(f"the environment variable CXX names {wanted!r}, which is not there")
        return wanted
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return name
    raise BuildError("no C++ compiler found (c++, g++ or clang++)")


def find_ninja() -> str:
    try:
        import ninja
    except ImportError:
        found = shutil.which("ninja")
        if found is None:
            raise BuildError("ninja is missing (pip install ninja)") from None
        return found
    return str(Path(ninja.BIN_DIR) / "ninja")


def include_folders() -> list[str]:
    try:
        import pybind11
    except ImportError:
        raise BuildError("pybind11 is missing (pip install pybind11)") from None
    paths = sysconfig.get_paths()
    if not Path(paths["include"], "Python.h").is_file():
        raise BuildError(f"Python.h is not in {paths['include']} (install the development files of this Python)")
    return [pybind11.get_include(), *sorted({paths["include"], paths["platinclude"]})]


def isa_flags(source: str, cxx: str) -> str:
    """The flags of the instruction set that the file's name ends with; none when the compiler is too old for them."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ""
    flags = FLAGS_BY_SUFFIX.get(Path(source).stem.rpartition("_")[2], "")
    probe = [*shlex.split(cxx), *flags.split(), "-fsyntax-only", "-x", "c++", os.devnull]
    return flags if subprocess.run(probe, capture_output=True).returncode == 0 else ""


def ninja_path(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


setup(
    packages=find_packages(include=["atk", "atk.*"]),  # through its links atk/kernels and atk/bench too
    ext_modules=[Extension("atk._C", SOURCES, depends=HEADERS, optional=True)],
    cmdclass={"build_ext": OptionalNinjaBuild},
)
