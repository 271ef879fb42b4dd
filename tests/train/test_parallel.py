"""Training on several ranks: the steps of one process, and jobs that fail, are killed, or resume on more ranks."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from support.processes import PATIENCE, Job, start_ranks
from support.runs import arguments, difference_arguments, rows, unified_arguments
from support.runs import semisupervised_arguments as semi_arguments
from support.training_ranks import BATCH

from atk.cli.main import main
from atk.models.clap import CLAP
from atk.models.saved import best_or_last
from atk.train import ranks

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch has no gloo")

NO_DROPOUT = ("--model.audio.dropout", "0", "--model.text.dropout", "0")  # each rank draws its own


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "loss", "methods"),
    [
        (2, "info_nce", "au"),  # a unified step has the terms of all methods
        pytest.param(2, "info_nce", "sd", marks=pytest.mark.exhaustive),
        pytest.param(4, "info_nce", "asdu", marks=pytest.mark.exhaustive),
        pytest.param(2, "sigmoid", "asdu", marks=pytest.mark.exhaustive),
    ],
)
def test_a_step_on_several_ranks_equals_that_of_one_process(tiny_data, noises, scenes, tmp_path, size, loss, methods):
    batch = ("--batch_size", str(BATCH))
    options = (*batch, "--loss.kind", loss)
    by_method = {
        "a": arguments(tiny_data, tmp_path / "a", *options),
        "s": semi_arguments(tiny_data, noises, tmp_path / "s", *options, "--mapper.noise", "0"),
        "d": difference_arguments(scenes, tmp_path / "d", *batch),
        "u": unified_arguments(scenes, noises, tmp_path / "u", *options, "--mapper.noise", "0"),
    }
    for method in {"s", "u"}.intersection(methods):
        main([*by_method[method], "--steps", "1"])  # writes the list of unlabeled audio, as the first rank does
    commands = [by_method[method] for method in methods]
    job = start_ranks(size, "support.training_ranks:run_steps", size, str(tmp_path), commands)
    assert job.wait(600) == 0, job.output
    errors = [line for rank in range(size) for line in json.loads((tmp_path / f"{rank}.json").read_text())]
    assert not errors, "\n".join(errors)


def start(ranks, command):
    """Start an `atk` command on `ranks` processes."""
    return start_ranks(ranks, "atk.cli.main:main", command)


def torchrun(ranks, command, max_restarts=0):
    """Start an `atk` command with the agent of torchrun, which ends the other ranks when one fails."""
    environment = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return Job("support.training_ranks:launch", ranks, command, max_restarts, environments=(environment,))


def wait_for_step(job, out, step):
    deadline = time.monotonic() + PATIENCE
    while job.poll() is None and time.monotonic() < deadline:
        if (out / "metrics.jsonl").exists() and len((out / "metrics.jsonl").read_text().splitlines()) >= step:
            return
        time.sleep(0.005)
    job.kill()
    pytest.fail(f"no step {step} within {PATIENCE} s: {job.output}")


def ranks_of(launcher):
    """Process ids of the ranks, in the order in which torchrun started them."""
    (pid,) = launcher.pids
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children]


def curve(out):
    return [row["loss"] for row in rows(out) if "loss" in row]


SHARDS = ("--shard", "true")
BACKGROUND = ("--async-save", "true")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "shard_after"),
    [
        ((*SHARDS, *BACKGROUND), "true"),
        pytest.param(("--shard", "false"), "true", marks=pytest.mark.exhaustive),
        pytest.param(SHARDS, "false", marks=pytest.mark.exhaustive),
        pytest.param(BACKGROUND, "true", marks=pytest.mark.exhaustive),
    ],
)
def test_a_run_killed_on_two_ranks_resumes_on_four_like_one_process(tiny_data, tmp_path, options, shard_after):
    same = (*NO_DROPOUT, "--batch-size", "6", "--optim.weight-decay", "0.1", "--eval-every", "0", "--ema", "0.5")
    more = (*same, "--micro-batch", "2", *options)
    main(arguments(tiny_data, tmp_path / "whole", *same))
    out = tmp_path / "run"
    job = start(2, arguments(tiny_data, out, *more))
    wait_for_step(job, out, 5)
    job.kill()
    assert job.wait() == -signal.SIGKILL and not (out / "summary.json").exists()
    last = best_or_last(out)
    # Until the end, the weights of a sharded run are only in the shards, which one process can read, too.
    assert (last / "model.safetensors").exists() == (options[:2] != SHARDS)
    CLAP.from_pretrained(out)
    job = start(4, ["train", "aligned", "--out", str(out), "--resume", "--shard", shard_after])
    assert job.wait() == 0, job.output
    assert curve(out) == pytest.approx(curve(tmp_path / "whole"), rel=1e-3)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["ranks"] == 4 and summary["steps"] == 12
    assert (out / "checkpoints" / "last" / "model.safetensors").exists()


@pytest.mark.exhaustive
def test_a_rank_that_dies_ends_the_job_and_a_restart_resumes_it(tiny_data, tmp_path):
    out = tmp_path / "run"
    command = arguments(tiny_data, out, "--steps", "60", "--save-every", "1", "--eval-every", "0", "--resume")
    job = torchrun(2, command, max_restarts=1)
    wait_for_step(job, out, 5)
    os.kill(ranks_of(job)[1], signal.SIGKILL)
    wait_for_step(job, out, len(rows(out)) + 5)  # torchrun has restarted both ranks
    os.kill(ranks_of(job)[1], signal.SIGKILL)
    # torchrun reports the rank whose end it notices first: the killed one, or rank 0, which has lost it.
    assert job.wait() != 0 and ("SIGKILL" in job.output or "rank 0 lost contact" in job.output), job.output
    assert not (out / "summary.json").exists()
    job = start(2, command)
    assert job.wait() == 0, job.output
    assert json.loads((out / "summary.json").read_text())["steps"] == 60


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_job(tiny_data, tmp_path):
    out = tmp_path / "run"
    job = start(2, arguments(tiny_data, out, "--steps", "2000", "--eval-every", "0", "--timeout", "10"))
    wait_for_step(job, out, 3)
    waiting, hanging = job.pids
    os.kill(hanging, signal.SIGSTOP)
    deadline = time.monotonic() + PATIENCE
    while is_running(waiting) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(hanging, signal.SIGKILL)  # as torchrun does, 30 s later
    assert job.wait() != 0 and "rank 0 lost contact with the others (timed out)" in job.output, job.output


def is_running(pid):
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "(zombie)" not in status.read_text()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:2048", "connection closed"),
        ("Application timeout caused pair closure", "timed out"),
        ("Timed out waiting 1800000ms for recv operation to complete", "timed out"),
        ("writev: Broken pipe", "connection closed"),
        ("NCCL error: remote process exited or there was a network error", "connection closed"),
        ("mat1 and mat2 shapes cannot be multiplied", None),
    ],
)
def test_network_errors_are_reported_as_lost_ranks(monkeypatch, text, reason):
    def fail():
        with ranks.naming_lost_ranks():
            raise RuntimeError(text)

    with pytest.raises(RuntimeError, match=re.escape(text)):  # a single rank cannot lose another
        fail()
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    monkeypatch.setattr(ranks, "rank", lambda: 1)
    if reason is None:
        with pytest.raises(RuntimeError, match="mat1"):
            fail()
        return
    with pytest.raises(ranks.RankLost, match=re.escape(f"rank 1 lost contact with the others ({reason})")):
        fail()


@pytest.mark.slow
def test_only_the_first_rank_reads_headers(tiny_data, tmp_path):
    with (tiny_data / "train.csv").open() as table:
        count = len(table.readlines()) - 1
    data = shutil.copytree(tiny_data, tmp_path / "data")
    (data / "train 3.wav").write_bytes(b"")
    job = start_ranks(2, "support.training_ranks:read_clips", str(data), str(tmp_path))
    assert job.wait() == 0, job.output
    first, second = (json.loads((tmp_path / str(rank)).read_text()) for rank in range(2))
    assert first[:2] == second[:2] and len(first[0]) == count - 1 and (first[2], second[2]) == (count, 0)


@pytest.mark.slow
def test_replicas_are_freed_before_the_group_is_destroyed(tmp_path):
    job = start_ranks(2, "support.training_ranks:lose_a_rank", str(tmp_path))
    assert job.wait() == 0, job.output
    assert [json.loads((tmp_path / str(rank)).read_text()) for rank in range(2)] == [[True], [True]]


@pytest.mark.slow
def test_a_signal_to_the_launcher_saves_and_stops(tiny_data, tmp_path):
    out = tmp_path / "run"
    job = torchrun(2, arguments(tiny_data, out, "--steps", "2000", "--save-every", "2000", "--eval-every", "0"))
    wait_for_step(job, out, 3)
    os.kill(*job.pids, signal.SIGTERM)
    assert job.wait() != 0 and "stopped at step" in job.output
    stopped = torch.load(out / "checkpoints" / "last" / "training.pt", weights_only=True)["step"]
    assert 3 <= stopped < 2000 and len(rows(out)) == stopped


@pytest.mark.slow
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_bad_file_on_one_rank(tiny_data, tmp_path, on_error):
    data = shutil.copytree(tiny_data, tmp_path / "data")
    soundfile.write(data / "train 7.wav", np.full(8000, np.nan), 16000, subtype="FLOAT")
    out = tmp_path / "run"
    job = start(2, arguments(data, out, "--on-error", on_error, "--steps", "3"))
    code = job.wait()
    assert "train 7.wav" in job.output
    if on_error == "raise":
        assert code != 0 and "stops because rank" in job.output
    else:
        assert code == 0, job.output
        assert json.loads((out / "summary.json").read_text())["skipped"] == 1


@pytest.mark.slow
def test_more_ranks_than_clips_in_a_batch(tiny_data, noises, tmp_path):
    more = (*NO_DROPOUT, "--batch-size", "3", "--steps", "11", "--mapper.noise", "0", "--mapper.dropout", "0")
    main(semi_arguments(tiny_data, noises, tmp_path / "whole", *more))
    job = start(4, semi_arguments(tiny_data, noises, tmp_path / "run", *more))
    assert job.wait() == 0, job.output
    assert curve(tmp_path / "run") == pytest.approx(curve(tmp_path / "whole"), rel=1e-3)


@pytest.mark.slow
def test_unlabeled_clips_on_some_ranks_only(tiny_data, noises, tmp_path):
    two_noises = tmp_path / "two"
    two_noises.mkdir()
    for index in range(2):
        shutil.copy(noises / f"{index}.wav", two_noises)
    more = (*NO_DROPOUT, "--batch-size", "6", "--steps", "3", "--mapper.noise", "0", "--mapper.dropout", "0")
    main(semi_arguments(tiny_data, two_noises, tmp_path / "whole", *more))
    job = start(3, semi_arguments(tiny_data, two_noises, tmp_path / "run", *more, "--micro-batch", "1"))
    assert job.wait() == 0, job.output
    assert curve(tmp_path / "run") == pytest.approx(curve(tmp_path / "whole"), rel=1e-3)
