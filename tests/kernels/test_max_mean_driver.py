"""The C++ kernels without Python, compiled for this processor and for ARM (under an emulator): max_mean_driver.cpp.

The instructions of AVX-VNNI have the same meaning in the encoding of AVX-512, which stands in for them where they are
missing.
"""

import importlib.util
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DRIVER = "tests/kernels/max_mean_driver.cpp"
ARM_COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
ARM_LIBRARIES = "/usr/aarch64-linux-gnu"


def build(folder, **environment):
    """The driver, compiled with the flags of the extension."""
    pytest.importorskip("setuptools")
    spec = importlib.util.spec_from_file_location("atk_setup", ROOT / "setup.py")
    assert spec and spec.loader
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    sources = [source for source in setup.SOURCES if not source.endswith("bindings.cpp")]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        setup.compile_sources(folder, folder / "driver", [*sources, DRIVER], [str(ROOT / "csrc")], "")
    return folder / "driver"


def instruction_sets(*command):
    """The instruction sets that passed."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.split()


def processor_flags():
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


FLAGS = processor_flags()
STAND_IN = {"avx512_vnni", "avx512vl"} <= FLAGS and "avx_vnni" not in FLAGS


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """The driver for this processor."""
    return build(tmp_path_factory.mktemp("native"), CXXFLAGS="-DATK_EVEX_VNNI" if STAND_IN else "")


@pytest.mark.exhaustive
def test_the_instruction_sets_of_this_processor(driver):
    passed = instruction_sets(driver)
    assert passed[-1] == ("neon" if platform.machine() in ("aarch64", "arm64") else "portable")
    for isa, needed in (
        ("avx512_bf16", {"avx512bw", "avx512_vnni", "avx512_bf16"}),
        ("avx512_vnni", {"avx512bw", "avx512_vnni"}),
        ("avx2_vnni", {"avx512_vnni"} if STAND_IN else {"avx_vnni"}),
        ("avx2", {"avx2", "fma"}),
    ):
        assert (isa in passed) == (needed <= FLAGS)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("processor", "isas"), [("Haswell", ["avx2", "portable"]), ("Nehalem", ["portable"])])
def test_older_processors(driver, processor, isas):
    if shutil.which("qemu-x86_64") is None or platform.machine() != "x86_64":
        pytest.skip("qemu-x86_64 is missing (Debian: apt install qemu-user), or this is not an x86-64 CPU")
    assert instruction_sets("qemu-x86_64", "-cpu", processor, driver) == isas


@pytest.mark.exhaustive
def test_arm(tmp_path):
    for program in (ARM_COMPILER, EMULATOR):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is missing (Debian: apt install g++-aarch64-linux-gnu qemu-user)")
    driver = build(tmp_path, CXX=ARM_COMPILER)

    def passed(processor, *arguments):
        return instruction_sets(EMULATOR, "-L", ARM_LIBRARIES, "-cpu", processor, driver, *arguments)

    assert passed("max") == ["neon_bf16", "neon_dot", "neon"]
    assert passed("neoverse-n1", "--list") == ["neon_dot", "neon"]
    assert passed("cortex-a72", "--list") == ["neon"]
