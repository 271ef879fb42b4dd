"""Training on several ranks: steps equal to one process's, runs that are killed, go on elsewhere, or end."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from support.runs import arguments, difference_arguments, rows
from support.runs import semisupervised_arguments as semi_arguments
from support.training_ranks import BATCH, work

from atk.cli.main import main
from atk.train import ranks

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch has no gloo")

STILL = ("--model.audio.dropout", "0", "--model.text.dropout", "0")  # dropout is drawn anew on every rank
PATIENCE = 120  # seconds until a job must have ended, its start included


@pytest.mark.parametrize("size", [2, 4])
def test_a_step_on_ranks_is_that_of_one_process(tiny_data, noises, scenes, tmp_path, size):
    batch = ("--batch_size", str(BATCH))
    commands = [
        arguments(tiny_data, tmp_path / "a", *batch),
        semi_arguments(tiny_data, noises, tmp_path / "s", *batch, "--mapper.noise", "0"),
        difference_arguments(scenes, tmp_path / "d", *batch),
    ]
    main(commands[1] + ["--steps", "1"])  # lists the audio without captions, as the first rank does
    torch.multiprocessing.spawn(work, (size, str(tmp_path), commands), size)
    said = [line for rank in range(size) for line in json.loads((tmp_path / f"{rank}.json").read_text())]
    assert not said, "\n".join(said)


def torchrun(ranks, command, *options):
    """Start `command` of atk on `ranks` processes."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
    return subprocess.Popen([*launch, "-m", "atk", *command], **pipes)


def ended(process):
    """Exit code and output of a job that ends within its time."""
    try:
        said, _ = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"still running after {PATIENCE} s: {process.communicate()[0]}")
    return process.returncode, said


def wait_for_step(process, out, step):
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        if (out / "metrics.jsonl").exists() and len((out / "metrics.jsonl").read_text().splitlines()) >= step:
            return
        time.sleep(0.005)
    process.kill()
    pytest.fail(f"no step {step} within {PATIENCE} s: {process.communicate()[0]}")


def workers_of(process):
    """The ranks' process ids, in the order of their start."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children]


def curve(out):
    return [row["loss"] for row in rows(out) if "loss" in row]


@pytest.mark.parametrize(("shard", "then"), [("false", "true"), ("true", "false")])
def test_killed_on_two_ranks_it_goes_on_on_four_as_one_process_would(tiny_data, tmp_path, shard, then):
    more = (*STILL, "--micro-batch", "2", "--shard", shard, "--batch-size", "6")
    main(arguments(tiny_data, tmp_path / "whole", *STILL, "--batch-size", "6"))
    out = tmp_path / "run"
    job = torchrun(2, arguments(tiny_data, out, *more))
    wait_for_step(job, out, 5)
    for worker in workers_of(job):
        os.kill(worker, signal.SIGKILL)
    assert ended(job)[0] != 0 and not (out / "summary.json").exists()
    code, said = ended(torchrun(4, ["train", "aligned", "--out", str(out), "--resume", "--shard", then]))
    assert code == 0, said
    assert curve(out) == pytest.approx(curve(tmp_path / "whole"), rel=1e-3)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["ranks"] == 4 and summary["steps"] == 12


def test_a_rank_that_dies_ends_the_job_and_a_restart_goes_on(tiny_data, tmp_path):
    out = tmp_path / "run"
    job = torchrun(2, arguments(tiny_data, out, "--steps", "60", "--save-every", "1"))
    wait_for_step(job, out, 5)
    os.kill(workers_of(job)[1], signal.SIGKILL)
    code, said = ended(job)
    assert code != 0 and "SIGKILL" in said  # and rank 0's own line, where torchrun lets it live so long
    kept = len(rows(out))
    job = torchrun(2, arguments(tiny_data, out, "--steps", "60", "--save-every", "1", "--resume"), "--max-restarts=1")
    wait_for_step(job, out, kept + 5)
    os.kill(workers_of(job)[1], signal.SIGKILL)
    code, said = ended(job)
    assert code == 0, said
    assert json.loads((out / "summary.json").read_text())["steps"] == 60


def test_a_rank_that_hangs_is_given_up(tiny_data, tmp_path):
    out = tmp_path / "run"
    job = torchrun(2, arguments(tiny_data, out, "--steps", "2000", "--eval-every", "0", "--timeout", "20"))
    wait_for_step(job, out, 3)
    waiting, hanging = workers_of(job)
    os.kill(hanging, signal.SIGSTOP)
    deadline = time.monotonic() + PATIENCE
    while is_running(waiting) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(hanging, signal.SIGKILL)  # as torchrun does, 30 s later
    code, said = ended(job)
    assert code != 0 and "rank 0 lost the others (timed out)" in said, said


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
def test_errors_of_the_network_are_those_of_a_lost_rank(monkeypatch, text, reason):
    def fail():
        with ranks.naming_lost_ranks():
            raise RuntimeError(text)

    with pytest.raises(RuntimeError, match=re.escape(text)):  # alone there is no rank to lose
        fail()
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    monkeypatch.setattr(ranks, "rank", lambda: 1)
    if reason is None:
        with pytest.raises(RuntimeError, match="mat1"):
            fail()
        return
    with pytest.raises(ranks.RankLost, match=re.escape(f"rank 1 lost the others ({reason})")):
        fail()


def test_a_signal_to_the_launcher_saves_and_stops(tiny_data, tmp_path):
    out = tmp_path / "run"
    job = torchrun(2, arguments(tiny_data, out, "--steps", "2000", "--save-every", "2000", "--eval-every", "0"))
    wait_for_step(job, out, 3)
    job.send_signal(signal.SIGTERM)
    code, said = ended(job)
    assert code != 0 and "stopped at step" in said
    stopped = torch.load(out / "checkpoints" / "last" / "training.pt", weights_only=True)["step"]
    assert 3 <= stopped < 2000 and len(rows(out)) == stopped


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_bad_file_on_one_rank(tiny_data, tmp_path, on_error):
    data = shutil.copytree(tiny_data, tmp_path / "data")
    soundfile.write(data / "train 7.wav", np.full(8000, np.nan), 16000, subtype="FLOAT")
    out = tmp_path / "run"
    code, said = ended(torchrun(2, arguments(data, out, "--on-error", on_error, "--steps", "3")))
    assert "train 7.wav" in said
    if on_error == "raise":
        assert code != 0 and "could not go on, see what it says" in said
    else:
        assert code == 0, said
        assert json.loads((out / "summary.json").read_text())["skipped"] == 1


def test_more_ranks_than_clips_in_a_batch(tiny_data, noises, tmp_path):
    more = (*STILL, "--batch-size", "3", "--steps", "11", "--mapper.noise", "0", "--mapper.dropout", "0")
    main(semi_arguments(tiny_data, noises, tmp_path / "whole", *more))
    code, said = ended(torchrun(4, semi_arguments(tiny_data, noises, tmp_path / "run", *more)))
    assert code == 0, said
    assert curve(tmp_path / "run") == pytest.approx(curve(tmp_path / "whole"), rel=1e-3)


def test_a_side_that_only_some_ranks_have(tiny_data, noises, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for number in range(2):
        shutil.copy(noises / f"{number}.wav", few)
    more = (*STILL, "--batch-size", "6", "--steps", "3", "--mapper.noise", "0", "--mapper.dropout", "0")
    main(semi_arguments(tiny_data, few, tmp_path / "whole", *more))
    code, said = ended(torchrun(3, semi_arguments(tiny_data, few, tmp_path / "run", *more, "--micro-batch", "1")))
    assert code == 0, said
    assert curve(tmp_path / "run") == pytest.approx(curve(tmp_path / "whole"), rel=1e-3)
