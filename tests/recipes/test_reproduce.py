"""`atk reproduce` at the small scale: whole tables, kills, changed settings, and dry runs on an imported data set."""

import csv
import json
import re
import time

import pytest
from support.processes import PATIENCE, Job
from support.published_captions import make_clotho

from atk.cli.main import main
from atk.data.published import import_set
from atk.recipes import TABLES


@pytest.fixture(scope="module", autouse=True)
def no_java():
    """Hide java, as METEOR takes seconds per call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")
        yield


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("reproduced")


def command(name, out, *more):
    return ["reproduce", name, "--out", str(out), "--scale", "small", "--device", "cpu", *map(str, more)]


def table(out, name):
    return json.loads((out / "small" / f"table_{name.replace('.', '_')}.json").read_text())


def check(out, name, rows):
    content = table(out, name)
    assert [row["row"] for row in content["rows"]] == list(rows)
    for row in content["rows"]:
        assert row["runs"] and row["needs"] is None
        absent = row["missing"].keys()
        for name, column in row["columns"].items():
            assert (name in absent) != (column.get("mean") is not None)
            if column.get("difference") is not None:
                assert column["difference"] == pytest.approx(column["mean"] - column["thesis"])
    return content


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("3.1", ["triplet-glove", "aligned"]),
        ("4.1", ["al-mixgen", "subtraction"]),
        ("4.2", ["mask-diff-diff"]),
        ("5.1", ["clap", "mlp-clotho", "al-mixgen"]),
        ("5.3", ["transformer-4-clotho"]),
    ],
)
def test_rows_run_end_to_end(out, name, rows, capsys):
    main(command(name, out, "--seeds", 0, "--rows", *rows))
    content = check(out, name, rows)
    assert f"| {content['rows'][0]['label']} | thesis |" in capsys.readouterr().out


@pytest.mark.slow
def test_captions_of_differences_are_listed_beside_those_of_the_baseline(out, capsys):
    main(command("4.3", out, "--seeds", 0))
    printed = capsys.readouterr().out
    with (out / "small" / "table_4_3_seed0.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 and all(row["minus_added"] and row["baseline_minus_input"] for row in rows)
    assert f"  minus_added  {rows[0]['minus_added']}" in printed


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [name for name in TABLES if name != "4.3"])
def test_whole_tables_run_end_to_end(out, name):
    main(command(name, out, "--seeds", 0, 1))
    content = check(out, name, [row.name for row in TABLES[name].rows])
    trained = [row for row in content["rows"] if row["runs"][0]["seed"] is not None]
    assert all([run["seed"] for run in row["runs"]] == [0, 1] for row in trained)


@pytest.mark.slow
def test_a_killed_command_goes_on_and_gives_the_same_table(out, tmp_path, capsys):
    rows = ["mlp-audiocaps", "no-noise-clotho"]
    main(command("5.4", out, "--seeds", 0, "--rows", *rows))
    job = Job("atk.cli.main:main", command("5.4", tmp_path, "--seeds", 0, "--rows", *rows))
    first = tmp_path / "small" / "runs" / "table_5_1" / "mlp_audioset" / "seed0"
    deadline = time.monotonic() + PATIENCE
    while not (first / "checkpoints" / "last").exists():
        assert time.monotonic() < deadline and job.poll() is None, job.output
        time.sleep(0.01)
    job.kill()
    assert not (tmp_path / "small" / "table_5_4.json").exists()
    capsys.readouterr()
    main(command("5.4", tmp_path, "--seeds", 0, "--rows", *rows))
    assert re.search(r"run 1 of 2: mlp-audiocaps, seed 0 \((started|trained|complete)\)", capsys.readouterr().err)
    for before, after in zip(table(out, "5.4")["rows"], table(tmp_path, "5.4")["rows"], strict=True):
        assert before["columns"] == after["columns"]
    main(command("5.4", tmp_path, "--seeds", 0, "--rows", *rows))  # nothing is left to do
    assert "run 2 of 2: no-noise-clotho, seed 0 (complete)" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_with_other_settings_is_refused(out, tmp_path, capsys):
    main(command("5.1", out, "--seeds", 0, "--rows", "finetuned"))
    with pytest.raises(SystemExit) as error:
        main(command("5.1", out, "--seeds", 0, "--rows", "finetuned", "--weights", f"msclap={tmp_path}"))
    assert error.value.code == 2
    assert "was started with other settings (settings.init: '" in capsys.readouterr().err


@pytest.fixture(scope="module")
def clotho(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clotho")
    make_clotho(folder / "set")
    import_set("clotho", folder / "set", folder / "data")
    return folder / "data"


@pytest.mark.slow
def test_a_dry_run_lists_every_run_with_its_settings_and_steps(clotho, tmp_path, capsys):
    arguments = ["--data", f"clotho={clotho}", f"esc50={clotho}", "--weights", "cnn14=cnn14.pth", "--seeds", "3", "5"]
    main(["reproduce", "4.2", "--out", str(tmp_path), "--dry-run", *arguments])
    printed = capsys.readouterr().out
    for row in TABLES["4.2"].rows:
        for seed in (3, 5):
            assert f"{row.name}, seed {seed}: {tmp_path}/runs/{row.recipe}/seed{seed} (not started)" in printed
    assert printed.count("lr: 0.0001") == 6 and printed.count(f"references: {clotho}") == 6
    assert "condition: multi/diff" in printed
    assert printed.count("50 steps") == 6  # an epoch is one batch: three clips with five captions
    assert not list(tmp_path.iterdir())


def test_a_dry_run_names_what_rows_need(clotho, tmp_path, capsys):
    arguments = ["--data", f"clotho={clotho}", "--weights", "laion=clap", "--rows", "laion-clap", "mlp-audioset"]
    main(["reproduce", "5.2", "--out", str(tmp_path / "out"), "--dry-run", *arguments])
    printed = capsys.readouterr().out
    assert "needs --data audioset=PATH, --weights msclap=PATH" in printed
    assert "checkpoint: clap, evaluated as it is" in printed


@pytest.mark.slow
def test_a_dry_run_plans_time_and_memory(out, capsys):
    main(command("5.2", out, "--seeds", 0, "--rows", "mlp-audioset", "--dry-run", "--device", "h100", "--devices", 2))
    assert re.search(r"4 steps; planned on 2 x h100: \d+\.\d\d h of training, \d\.\d GiB", capsys.readouterr().out)


def test_a_table_without_anything_to_run_from_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        main(["reproduce", "4.1", "--out", str(tmp_path)])
    assert error.value.code == 2
    assert "no row can be run; baseline needs --data clotho=PATH" in capsys.readouterr().err


@pytest.mark.exhaustive
def test_two_devices(tmp_path):
    rows = ["mlp-audioset"]
    main(command("5.1", tmp_path, "--seeds", 0, "--rows", *rows, "--devices", 2))
    check(tmp_path, "5.1", rows)
    run = tmp_path / "small" / "runs" / "table_5_1" / "mlp_audioset" / "seed0"
    assert json.loads((run / "summary.json").read_text())["ranks"] == 2
