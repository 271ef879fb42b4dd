"""Builds csrc/ as the extension `atk._C` if a C++ compiler is available.

Each instruction set needs its own compiler flags. setuptools cannot set flags per file, so the build uses Ninja.
If the build fails, the installation continues without the extension, and `atk/_build_error.txt` holds the reason.
"""

import os
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
FLAGS_BY_SUFFIX = {  # of files that hold the kernels of one instruction set
    "_avx512_bf16": f"{AVX512} -mavx512vnni -mavx512bf16",
    "_avx512_vnni": f"{AVX512} -mavx512vnni",
    "_avx512": AVX512,
    "_avx2_vnni": "-mavx2 -mfma -mavxvnni",
    "_avx2": "-mavx2 -mfma",
    "_neon_bf16": "-march=armv8.2-a+dotprod+bf16",
    "_neon_dot": "-march=armv8.2-a+dotprod",
}
BUILD_ERROR = "_build_error.txt"

NINJA = """\
rule compile
  command = {cxx} {flags} $isa {extra} {includes} -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = {cxx} {link} -pthread {link_extra} $in -o $out {libraries}
"""


class BuildError(Exception):
    """The extension cannot be built. The first line gives the reason; any further lines are the compiler's output."""


class OptionalNinjaBuild(build_ext):
    """Builds the extension with Ninja and tolerates failure."""

    def build_extension(self, ext: Extension) -> None:
        module = Path(self.get_ext_fullpath(ext.name)).resolve()
        outputs = [module]
        if self.editable_mode or self._inplace_requested:
            outputs.append(ROOT / "atk" / module.name)
        try:
            compile_module(Path(self.build_temp).resolve(), module)
        except BuildError as error:
            print(f"warning: installing atk without its C++ extension: {error}", file=sys.stderr)
            for output in outputs:  # an extension left over from an earlier build would run outdated code
                output.unlink(missing_ok=True)
                output.parent.mkdir(parents=True, exist_ok=True)
                output.with_name(BUILD_ERROR).write_text(f"{error}\n")
        else:
            for output in outputs:
                output.with_name(BUILD_ERROR).unlink(missing_ok=True)

    def run(self) -> None:
        self._inplace_requested = self.inplace  # setuptools clears `inplace` during the build
        super().run()


def compile_module(folder: Path, module: Path) -> None:
    """Compiles csrc/ in `folder` and links it into `module`; raises BuildError."""
    link = "-shared -undefined dynamic_lookup" if sys.platform == "darwin" else "-shared"  # symbols of Python
    compile_sources(folder, module, SOURCES, include_folders(), link)


def compile_sources(folder: Path, output: Path, sources: list[str], includes: list[str], link: str) -> None:
    """Compiles `sources` (relative to this file) in `folder` and links them into `output`; raises BuildError."""
    cxx = find_compiler()
    ninja = find_ninja()
    folder.mkdir(parents=True, exist_ok=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        NINJA.format(
            cxx=cxx,
            flags=FLAGS,
            extra=os.environ.get("CXXFLAGS", ""),
            includes=" ".join(f"-isystem {shlex.quote(path)}" for path in includes),
            link=link,
            link_extra=os.environ.get("LDFLAGS", ""),
            libraries="-ldl" if sys.platform == "linux" else "",
        )
    ]
    objects = []
    for source in sources:
        objects.append(f"{Path(source).stem}.o")
        lines.append(f"build {objects[-1]}: compile {ninja_path(ROOT / source)}\n  isa = {isa_flags(source, cxx)}\n")
    lines.append(f"build {ninja_path(output)}: link {' '.join(objects)}\n")
    (folder / "build.ninja").write_text("".join(lines))
    result = subprocess.run([ninja, "-C", str(folder)], check=False, capture_output=True, text=True)
    if result.returncode:
        raise BuildError(f"{cxx} failed on csrc/ (is it a C++17 compiler?)\n{(result.stdout + result.stderr)[-4000:]}")


def find_compiler() -> str:
    cxx = os.environ.get("CXX")
    if cxx:
        if shutil.which(shlex.split(cxx)[0]) is None:
            raise BuildError(f"compiler not found: CXX={cxx}")
        return cxx
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return name
    raise BuildError("no C++ compiler found (c++, g++, or clang++)")


def find_ninja() -> str:
    try:
        import ninja
    except ImportError:
        executable = shutil.which("ninja")
        if executable is None:
            raise BuildError("ninja is missing (pip install ninja)") from None
        return executable
    return str(Path(ninja.BIN_DIR) / "ninja")


def include_folders() -> list[str]:
    try:
        import pybind11
    except ImportError:
        raise BuildError("pybind11 is missing (pip install pybind11)") from None
    paths = sysconfig.get_paths()
    if not Path(paths["include"], "Python.h").is_file():
        raise BuildError(f"Python.h is not in {paths['include']} (install the Python development headers)")
    return [pybind11.get_include(), *sorted({paths["include"], paths["platinclude"]})]


def isa_flags(source: str, cxx: str) -> str:
    """Flags for the instruction set at the end of the file name; none if the compiler has none, as for another CPU."""
    flags = next((flags for suffix, flags in FLAGS_BY_SUFFIX.items() if Path(source).stem.endswith(suffix)), "")
    probe = [*shlex.split(cxx), *flags.split(), "-fsyntax-only", "-x", "c++", os.devnull]
    return flags if subprocess.run(probe, check=False, capture_output=True).returncode == 0 else ""


def ninja_path(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


if __name__ == "__main__":
    setup(
        packages=find_packages(include=["atk", "atk.*"]),  # follows the links atk/kernels and atk/bench
        ext_modules=[Extension("atk._C", SOURCES, depends=HEADERS, optional=True)],
        cmdclass={"build_ext": OptionalNinjaBuild},
    )
