"""If an optional package is missing, commands and classes report in one line which extra to install."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from atk.extras import EXTRAS, install_command, missing_package, optional_imports

ROOT = Path(__file__).parents[2]
OPTIONAL = (
    "triton", "torchaudio", "transformers", "tokenizers", "safetensors", "soundfile", "sklearn", "schedulefree",
    "jsonargparse", "yaml", "tensorboard", "tqdm", "matplotlib", "pycocoevalcap",
)  # fmt: skip
CODE = """
import contextlib, io, json, sys
sys.modules.update(dict.fromkeys({missing!r}))  # importing any of them raises ModuleNotFoundError
from atk.cli.main import main
for argv in {commands!r}:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            code = main(argv) or 0
        except SystemExit as end:
            code = end.code or 0
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""
NEED_A_PARSER = (["train", "aligned", "--help"], ["bench"], ["plan", "--device", "h100"], ["--help"])


def atk_without(missing, *commands):
    """(exit code, stdout, stderr) of each command in a process that cannot import the packages in `missing`."""
    code = CODE.format(missing=missing, commands=[list(command) for command in commands])
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return [json.loads(line) for line in process.stdout.splitlines()]


@pytest.mark.slow
def test_without_a_parser_the_command_names_the_extra():
    message = "atk: needs jsonargparse; pip install 'audio-text-kernels[train]'\n"
    assert atk_without(OPTIONAL, *NEED_A_PARSER) == [[2, "", message]] * len(NEED_A_PARSER)


@pytest.mark.slow
def test_doctor_and_version_need_torch_and_numpy_only():
    (code, printed, errors), version = atk_without(OPTIONAL, ["doctor"], ["--version"])
    assert code == 0, errors
    assert "packages\n  torch " in printed and "backends of atk.info_nce" in printed
    assert version == [0, "atk 0.1.0\n", ""]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "missing"),
    [
        (["train", "aligned", "--data", "D", "--out", "O"], "soundfile"),
        (["evaluate", "RUN", "--data", "D"], "soundfile"),
        (["soundscapes", "OUT"], "tqdm"),
        (["soundscapes", "OUT", "--rirs", "simulated"], "pyroomacoustics"),
        (["kernels", "--arch", "sm_90"], "triton"),
        (["app", "RUN"], "gradio"),
    ],
)
def test_a_missing_package_ends_with_one_line_and_code_2(argv, missing):
    ((code, _, errors),) = atk_without((missing,), argv)
    assert code == 2 and errors.count("\n") == 1
    assert errors.endswith(f": needs {missing}; {install_command(missing)}\n")


@pytest.mark.slow
def test_the_bench_extra_is_enough_for_the_parser_of_bench():
    missing = [name for name in OPTIONAL if name not in ("jsonargparse", "yaml")]
    ((code, _, errors),) = atk_without(missing, ["bench", "--help"])
    assert code == 0, errors


def test_optional_imports_name_the_extra_and_keep_other_errors():
    message = re.escape("needs PyYAML; pip install 'audio-text-kernels[train]'")
    with pytest.raises(ImportError, match=message), optional_imports:
        raise ModuleNotFoundError("No module named 'yaml.nodes'", name="yaml.nodes")
    with pytest.raises(ModuleNotFoundError, match="something"), optional_imports:
        raise ModuleNotFoundError("No module named 'something'", name="something")
    assert missing_package(ImportError("cannot import name 'x'", name="yaml")) is None


def test_each_extra_installs_its_packages():
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

    def packages(extra):
        names = set()
        for requirement in extras[extra]:
            if match := re.fullmatch(r"audio-text-kernels\[(.*)\]", requirement):
                names |= {name for other in match[1].split(",") for name in packages(other)}
            else:
                names.add(re.match(r"[\w-]+", requirement)[0])
        return names

    for extra, names in EXTRAS.items():
        assert set(names) <= packages(extra), extra
    compatible = set(EXTRAS) - {"psds"}  # it needs older versions of what others need
    assert {name for extra in compatible for name in EXTRAS[extra]} <= packages("all")
