"""Runs on other data than one folder: shards give the same bits as the folder, and several sets train together."""

import json
import re
import time

import pytest
import torch
import yaml
from support.pair_shards import shards_of
from support.processes import PATIENCE, start_ranks
from support.runs import arguments, rows, weights

from atk.cli.main import main
from atk.train.aligned import AlignedTask


def curve(out):
    return [(row["step"], row.get("loss"), row.get("val/R@1")) for row in rows(out)]


def same_weights(run, other):
    return all(torch.equal(value, weights(other)[name]) for name, value in weights(run).items())


@pytest.mark.slow
def test_an_interrupted_run_on_shards_gives_the_bits_of_the_folder(tiny_run, tiny_data, tmp_path, monkeypatch):
    shards, out = shards_of(tiny_data, tmp_path / "shards", 3), tmp_path / "run"
    command = arguments(tiny_data, out, "--data", str(shards))
    encode, calls = AlignedTask.encode, []

    def failing(self, batch):
        calls.append(batch)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return encode(self, batch)

    monkeypatch.setattr(AlignedTask, "encode", failing)
    with pytest.raises(SystemExit):
        main(command)
    monkeypatch.setattr(AlignedTask, "encode", encode)
    main(["train", "aligned", "--out", str(out), "--resume"])
    assert same_weights(out, tiny_run) and curve(out) == curve(tiny_run)
    summary, expected = (json.loads((run / "summary.json").read_text()) for run in (out, tiny_run))
    assert summary["metrics"] == expected["metrics"] and summary["data"] == str(shards)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch has no gloo")
def test_two_ranks_on_shards_give_the_bits_of_two_ranks_on_the_folder(tiny_data, tmp_path):
    shards = shards_of(tiny_data, tmp_path / "shards")
    folder_run, shard_run = tmp_path / "folder run", tmp_path / "shard run"
    assert start_ranks(2, "atk.cli.main:main", arguments(tiny_data, folder_run)).wait(PATIENCE) == 0
    job = start_ranks(2, "atk.cli.main:main", arguments(tiny_data, shard_run, "--data", str(shards)))
    while job.poll() is None and not ((shard_run / "metrics.jsonl").exists() and len(rows(shard_run)) >= 4):
        time.sleep(0.002)
    job.kill()
    job.wait()
    assert not (shard_run / "summary.json").exists()
    command = ["train", "aligned", "--out", str(shard_run), "--resume"]
    assert start_ranks(2, "atk.cli.main:main", command).wait(PATIENCE) == 0
    assert same_weights(folder_run, shard_run) and curve(folder_run) == curve(shard_run)


def test_several_sets_train_together(tiny_data, tmp_path, capsys):
    shards = shards_of(tiny_data, tmp_path / "shards")
    command = arguments(tiny_data, tmp_path / "run", "--steps", "3", "--eval-every", "0")
    main([*command, "--data", f"{shards}/train/{{0..1}}.tar", str(tiny_data), "--data-weights", "1", "0.5"])
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["data"] == [f"{shards}/train/{{0..1}}.tar", str(tiny_data)] and config["data_weights"] == [1, 0.5]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"]["clips"] == 6
    main(["train", "aligned", "--out", str(tmp_path / "run"), "--resume", "--steps", "4"])  # its lists are read again
    assert rows(tmp_path / "run")[-1]["step"] == 4
    with pytest.raises(SystemExit) as stop:
        main([*command, "--data", str(tiny_data), "--data-weights", "1", "2", "--out", str(tmp_path / "b")])
    assert stop.value.code == 2 and "data_weights must be 1, one per data set, got 2" in capsys.readouterr().err


def test_shards_are_evaluated_and_searched(tiny_run, tiny_data, tmp_path, capsys):
    shards = shards_of(tiny_data, tmp_path / "shards")
    results = []
    for data in (tiny_data, shards):
        main(["evaluate", str(tiny_run), "--data", str(data), "--split", "val", "--workers", "0"])
        results.append(json.loads(capsys.readouterr().out))
    assert results[0] == results[1] and results[0]["clips"] == 4
    main(["search", str(tiny_run), str(shards / "test"), "a low tone", "--top", "1", "--workers", "0"])
    assert re.fullmatch(rf"-?0\.\d+  {shards}/test/\d\.tar:data/set/test \d\.wav\n", capsys.readouterr().out)
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(tiny_run), "--data", str(shards), "--tags", "--workers", "0"])
    assert stop.value.code == 2 and "tags.csv is missing" in capsys.readouterr().err
