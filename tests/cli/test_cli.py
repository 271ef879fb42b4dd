"""The commands on a finished run: what they print and write, their help, and their error messages."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from yaml import YAMLError

from atk.cli import doctor
from atk.cli.main import main


def printed(capsys, *arguments):
    arguments = [str(argument) for argument in arguments]
    main([*arguments, "--device", "cpu"] if arguments[0] in ("evaluate", "align", "search") else arguments)
    return capsys.readouterr().out


@pytest.mark.slow
def test_evaluate_repeats_the_summary(tiny_run, tiny_data, capsys):
    result = json.loads(printed(capsys, "evaluate", tiny_run, "--data", tiny_data))
    summary = json.loads((tiny_run / "summary.json").read_text())["metrics"]
    for direction in ("text_to_audio", "audio_to_text"):
        assert result[direction] == pytest.approx(summary[direction])


@pytest.mark.slow
def test_evaluate_tags_and_zero_shot(tiny_run, tiny_data, tmp_path, capsys):
    folder = shutil.copytree(tiny_data, tmp_path / "tagged")
    rows = "".join(f"test {index}.wav,{int(index % 3 == 0)},{int(index % 3 == 1)}\n" for index in range(6))
    (folder / "tags.csv").write_text("file_name,low_tone,middle_tone\n" + rows)
    options = ("--tags", "--zero-shot", "--protocol", "tagging", "retrieval")
    result = json.loads(printed(capsys, "evaluate", tiny_run, "--data", folder, *options))
    assert result["tags"]["tags"] == 2 and 0 <= result["tags"]["ROC-AUC"] <= 100
    assert result["zero_shot"]["clips"] == 4 and result["zero_shot"]["classes"] == 2
    assert result["protocols"]["tagging"]["vocabularies"]["tags"]["tags"] == 2
    laion = result["protocols"]["retrieval"]["conventions"]["laion"]
    assert laion["text_to_audio"]["R@1"] == pytest.approx(result["text_to_audio"]["R@1"])


def test_search_ranks_every_file_and_names_the_bad_one(tiny_run, tiny_data, capsys):
    bad = tiny_data / "broken.wav"
    bad.write_bytes(b"not audio")
    try:
        main(["search", str(tiny_run), str(tiny_data), "a high tone", "--top", "5"])
    finally:
        bad.unlink()
    out, err = capsys.readouterr()
    scores = [float(line.split()[0]) for line in out.splitlines()]
    assert len(scores) == 5 and scores == sorted(scores, reverse=True)
    assert "broken.wav" in err


def test_align_writes_picture_and_numbers(tiny_run, tiny_data, capsys, tmp_path):
    out = tmp_path / "map.png"
    printed(capsys, "align", tiny_run, tiny_data / "test 0.wav", "a low tone", "--out", out)
    assert out.read_bytes()[:4] == b"\x89PNG"
    words = [line.split(",")[0] for line in out.with_suffix(".csv").read_text().splitlines()]
    assert words[1:] == ["a", "low", "tone"]
    for texts, expected in (
        (["a low tone", "high"], ["a low tone", "high"]),
        (["a low tone", "--phrase"], ["a low tone"]),
    ):
        printed(capsys, "align", tiny_run, tiny_data / "test 0.wav", *texts, "--out", out)
        assert [line.split(",")[0] for line in out.with_suffix(".csv").read_text().splitlines()][1:] == expected


def test_soundscapes_are_written_only_once(capsys, tmp_path):
    arguments = ["soundscapes", tmp_path / "scenes", "--preset", "easy", "--train", "3", "--test", "2", "--seed", "4"]
    assert printed(capsys, *arguments).strip() == str(tmp_path / "scenes")
    assert len((tmp_path / "scenes" / "train.csv").read_text().splitlines()) == 4
    main([str(argument) for argument in arguments])
    assert "already contains" in capsys.readouterr().err


@pytest.mark.parametrize("spills", [0, 16])
def test_compiling_prints_a_table_and_fails_if_registers_spill(monkeypatch, capsys, spills):
    pytest.importorskip("triton")
    from atk.kernels import compile as compiling

    def report(arch, cases, workers, progress):
        assert arch == "sm_90" and progress and len(list(cases)) > 10
        return [compiling.Row("forward", "float16", 32, 128, "64x32", 168, spills, 4096, 8, 0)]

    monkeypatch.setattr(compiling, "compile_report", report)
    with pytest.raises(SystemExit) if spills else contextlib.nullcontext():
        main(["kernels", "--arch", "sm_90", "--quick"])
    header, row = capsys.readouterr().out.splitlines()
    assert row.split()[header.split().index("spills")] == str(spills)


def test_tuning_prints_its_results_and_how_to_use_the_table(monkeypatch, tmp_path, capsys):
    pytest.importorskip("triton")
    from atk.kernels import availability, tune

    def tuned(shapes, dtypes, out):
        assert (shapes, dtypes) == ([(2, 3, 4, 5, 64)], [torch.float16])
        return tune.Tuned([], tried=9, failed=2, wrong=1)

    monkeypatch.setattr(availability, "unavailable", lambda device_type: None)
    monkeypatch.setattr(tune, "tune", tuned)
    table = tmp_path / "table.json"
    shape = ["2", "3", "4", "5", "64"]
    out = printed(capsys, "kernels", "--tune", table, "--shape", *shape, "--dtype", "float16")
    assert out == f"9 candidates, 2 failed, 1 wrong\nset ATK_LAUNCH_TABLE={table} to use the table\n"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), 1, ""),
        (torch.OutOfMemoryError("no memory left"), 1, "no memory left"),
        (SafetensorError("a damaged header"), 2, "atk: a damaged header\n"),
        (YAMLError("a stray\ttab"), 2, "atk: a stray tab\n"),
    ],
)
def test_the_exception_that_ends_a_command_sets_its_exit_code(monkeypatch, capsys, error, code, message):
    def fail():
        raise error

    monkeypatch.setattr(doctor, "report", fail)
    with pytest.raises(SystemExit) as stop:
        main(["doctor"])
    assert stop.value.code == code and message in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(monkeypatch):
    def fail():
        raise AssertionError("a bug")

    monkeypatch.setattr(doctor, "report", fail)
    with pytest.raises(AssertionError, match="a bug"):
        main(["doctor"])


@pytest.mark.parametrize("command", ["train", "evaluate", "align", "search", "soundscapes", "kernels", "doctor"])
def test_help_describes_every_option(command, capsys):
    arguments = [command, "aligned", "--help"] if command == "train" else [command, "--help"]
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    text = capsys.readouterr().out
    assert stop.value.code == 0
    bare = re.findall(r"^  (--[a-z.-]+)[^\n]*\n(?=  -|\n)", text, re.MULTILINE)
    assert [option for option in bare if not re.search(rf"^  {option}\b.*?  +\w", text, re.MULTILINE)] == []
    assert re.findall(r"^  (--\S+)(?: \S+)?(?:\n| ) +\((?:type|default): ", text, re.MULTILINE) == []
    if command == "train":
        for option in ("--optim.lr", "--batch-size", "--model.text.pretrained", "--loss.aligned-weight", "--resume"):
            assert option in text
        assert "peak learning rate" in " ".join(text.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "/no/such/run", "--data", "."], "/no/such/run"),
        (["evaluate", "{run}", "--data", "/no/such/data"], "/no/such/data"),
        (["evaluate", "{run}"], "data"),
        (["evaluate", "{run}", "--data", "{data}", "--clip-seconds", "0"], "clip_seconds must be above 0"),
        (["evaluate", "{run}", "--data", "{data}", "--protocol", "tagging"], "tags.csv, which is missing"),
        (["align", "{run}", "/no/such.wav", "a dog"], "/no/such.wav"),
        (["align", "{run}", "{data}/test 0.wav", "..."], "at least one word"),
        (["search", "{run}", "{data}", " "], "at least one word"),
        (["soundscapes", "{data}"], "not empty"),
        (["soundscapes", "{run}/x", "--classes", "1"], "classes"),
        (
            ["soundscapes", "{run}/x", "--preset", "harder"],
            "--preset must be one of 'easy', 'medium', 'hard', got 'harder'",
        ),
        (["kernels"], "--arch sm_90"),
        pytest.param(
            ["kernels", "--tune", "table.json"],
            "--tune: there is no GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        (["trian"], "trian"),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(arguments, message, tiny_run, tiny_data, capsys):
    with pytest.raises(SystemExit) as stop:
        main([argument.format(run=tiny_run, data=tiny_data) for argument in arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


@pytest.mark.slow
def test_import_is_light():
    code = (
        "import sys, torch; before = set(sys.modules); import atk; "
        "print([name for name in ('triton', 'transformers', 'torchaudio', 'sklearn', 'matplotlib') "
        "if name in sys.modules and name not in before])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.slow
def test_moments_are_searched_calibrated_and_evaluated(tiny_run, tiny_data, tmp_path, capsys):
    folder, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(tiny_data, folder)
    shutil.copytree(tiny_run, run, symlinks=True)
    rows = [f"{split} {index}.wav,tone,a tone,0.1,0.3\n" for split in ("val", "test") for index in range(4)]
    (folder / "events.csv").write_text("file_name,event,phrase,start,end\n" + "".join(rows))
    options = ["--data", str(folder), "--workers", "0"]
    result = json.loads(printed(capsys, "evaluate", str(run), *options, "--calibrate").rsplit("\n", 2)[0])
    assert result["queries"] == 4 and json.loads((run / "moments.json").read_text()) == result["settings"]
    result = json.loads(printed(capsys, "evaluate", str(run), *options, "--protocol", "moments"))
    result = result["protocols"]["moments"]
    assert result["queries"] == 4 and result["settings"]["threshold"] is not None
    recording = str(folder / "test 0.wav")
    search = ["search", str(run), recording, "a high tone, then a low tone", "a tone", "--moments", "--workers", "0"]
    result = json.loads(printed(capsys, *search, "--json", "--figures", str(tmp_path / "p"), "--threshold", "-1"))
    sequence, single = result["queries"]
    assert sequence["phrases"] == ["a high tone", "a low tone"] and single["phrases"] == ["a tone"]
    [hit] = single["hits"]
    assert hit["file"] == recording and hit["start"] == 0 and Path(hit["picture"]).is_file()
    text = printed(capsys, *search, "--threshold", "2")
    assert text.count("nothing found") == 2
    text = printed(capsys, *search, "--threshold", "-1", "--figures", str(tmp_path / "p"))
    span = r"\d\.\d\d-\d\.\d\d"
    (line,) = re.findall(rf"^-?\d\.\d{{3}}  {re.escape(recording)}  {span} s  (.*)$", text, re.MULTILINE)
    assert line == hit["picture"] and text.count(".png") == sum(len(query["hits"]) for query in result["queries"])
    parts = re.findall(rf"^-?\d\.\d{{3}}  {re.escape(recording)}  {span} s \({span}, {span}\)", text, re.MULTILINE)
    assert len(parts) == len(sequence["hits"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--exact"], "exact: only an index has it; see atk index"),
        (["--figures", "p"], "figures: only moments have it; add --moments"),
        (["--moments", "--score", "both"], "without --long-clips and --score"),
        (["--moments", "--smooth", "-1"], "smooth must be at least 0"),
        (["--top", "0"], "top must be at least 1"),
    ],
)
def test_options_of_moments_are_checked(options, message, tiny_run, tiny_data, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["search", str(tiny_run), str(tiny_data), "a tone", *options])
    assert message in capsys.readouterr().err
