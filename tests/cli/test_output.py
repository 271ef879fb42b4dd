"""File names of every kind can be printed, outputs replace no unrelated files, and results are not lost."""

import errno
import io
import os
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.tiny_clap import tiny_clap

from atk.cli.main import main
from atk.cli.output import accept_all_names, print_result, report_skipped
from atk.data import DataWarning

ODD_NAMES = (b"caf\xe9.wav", b"two\nlines\r.wav", b"--dashes.wav", b" space .wav", "犬.WAV".encode(), b"plain.wav")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_clap().save_pretrained(folder)
    return folder


def tone(path, hz=440.0):
    soundfile.write(os.fsencode(path), (0.3 * np.sin(2 * np.pi * hz * np.arange(8000) / 16000)), 16000, format="WAV")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "cp1252"])
def test_every_name_can_be_printed(monkeypatch, encoding):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stdout)
    accept_all_names()
    print_result("caf\udce9 犬 caf\u00e9")
    rest = {"utf-8": "犬 café".encode(), "ascii": rb"\u72ac caf\xe9"}.get(encoding, rb"\u72ac caf" + b"\xe9")
    assert stdout.buffer.getvalue().rstrip() == b"caf\xe9 " + rest


def test_a_result_that_cannot_be_printed_goes_to_stderr(monkeypatch, capsys):
    class Full(io.StringIO):
        def flush(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(OSError, match="standard output: No space left on device; the result is printed above instead"):
        print_result("the result")
    assert capsys.readouterr().err == "the result\n"


def test_a_reader_that_has_gone_is_no_reason_to_print_elsewhere(monkeypatch, capsys):
    class Closed(io.StringIO):
        def flush(self):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    with pytest.raises(BrokenPipeError):
        print_result("the result")
    assert capsys.readouterr().err == ""


def test_a_warning_about_data_is_one_line():
    main(["--version"])
    assert warnings.formatwarning(DataWarning("tags.csv is ignored"), DataWarning, "x.py", 3) == "tags.csv is ignored\n"
    assert "x.py:3: UserWarning: else" in warnings.formatwarning(UserWarning("else"), UserWarning, "x.py", 3)


def test_search_prints_one_line_for_every_name(model, tmp_path, capfdbinary):
    for index, name in enumerate(ODD_NAMES):
        tone(Path(tmp_path, os.fsdecode(name)), 300 + 100 * index)
    main(["search", str(model), str(tmp_path), "a dog", "--workers", "0", "--device", "cpu"])
    out, err = capfdbinary.readouterr()
    lines = out.splitlines()
    assert len(lines) == len(ODD_NAMES) and err == b""
    folder = os.fsencode(tmp_path) + b"/"
    names = {line.split(b"  ", 1)[1].removeprefix(folder) for line in lines}
    assert names == {rb"two\nlines\r.wav" if b"\n" in name else name for name in ODD_NAMES}


@pytest.mark.parametrize("command", ["embed", "index"])
def test_files_that_are_left_out_are_counted_and_named(model, tmp_path, capsys, command):
    (tmp_path / "audio").mkdir()
    tone(tmp_path / "audio" / "a.wav")
    (tmp_path / "audio" / "bad.wav").write_text("no audio")
    out = tmp_path / ("vectors.npy" if command == "embed" else "index")
    main([command, str(model), str(tmp_path / "audio"), "--out", str(out), "--workers", "0", "--device", "cpu"])
    out, err = capsys.readouterr()
    assert re.match("skipped 1: bad.wav", err.splitlines()[-1]) and str(tmp_path) in out


@pytest.mark.parametrize("name", ["--0w1-YA1Hm4.wav", "-x.wav", "caf\udce9.wav"])
def test_a_name_after_two_dashes_is_taken_literally(model, tmp_path, monkeypatch, capfd, name):
    monkeypatch.chdir(tmp_path)
    tone(tmp_path / name)
    main(["align", "--out", "out.png", "--device", "cpu", str(model), "--", name, "a dog"])
    assert (tmp_path / "out.png").stat().st_size > 1000 and capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("existing", "out", "reason"),
    [
        ("test.csv", "test.png", r"out: test\.csv exists and is not an alignment"),
        ("a.wav", "a.wav", r"out: a\.wav exists and is not a PNG picture"),
        ("notes.txt", "notes.txt", r"out: notes\.txt exists and is not a PNG picture"),
        ("folder/x", "folder", "out: folder is a folder; a file name is needed"),
        ("x", "values.csv", r"out: values\.csv names the CSV; give the name of the picture"),
    ],
)
def test_align_replaces_nothing_but_an_alignment(model, tmp_path, monkeypatch, capsys, existing, out, reason):
    monkeypatch.chdir(tmp_path)
    tone(tmp_path / "a.wav")
    if existing != "a.wav":
        Path(existing).parent.mkdir(exist_ok=True)
        Path(existing).write_text("file_name,caption\na.wav,a dog\n")
    before = Path(existing).read_bytes()
    arguments = ["align", str(model), "a.wav", "a dog", "--device", "cpu", "--out"]
    with pytest.raises(SystemExit) as error:
        main([*arguments, out])
    assert error.value.code == 2 and Path(existing).read_bytes() == before
    assert re.search(reason, capsys.readouterr().err)


def test_align_replaces_an_earlier_alignment(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tone(tmp_path / "a.wav")
    for text in ("a dog", "rain"):
        main(["align", str(model), "a.wav", text, "--device", "cpu", "--out", "new/align.png"])
    assert "rain" in (tmp_path / "new" / "align.csv").read_text() and len(list((tmp_path / "new").iterdir())) == 2


def test_a_folder_whose_name_is_not_utf8_is_reported_before_training(tmp_path, capsys):
    for option in ("--data", "--out"):
        with pytest.raises(SystemExit) as error:
            main(["train", "aligned", "--data", "d", "--out", "o", option, str(tmp_path / "caf\udce9")])
        assert error.value.code == 2
        assert f"{option[2:]}: '" in (err := capsys.readouterr().err) and "is not valid UTF-8; rename" in err


@pytest.mark.parametrize(("terminal", "hidden"), [(False, "1"), (True, None)])
def test_progress_bars_of_transformers_are_shown_on_terminals_only(monkeypatch, terminal, hidden):
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    main(["--version"])
    assert os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS") == hidden


def test_skipped_files_take_one_line_whatever_their_names(capsys):
    report_skipped([("a\nb\x1b[31m.wav", "empty")])
    assert capsys.readouterr().err == "skipped 1: a\\nb\\x1b[31m.wav (empty)\n"
    report_skipped([])
    assert capsys.readouterr().err == ""
