"""Command lines of tiny runs, and the files that they write."""

import functools
import json
import time

import torch
from safetensors.torch import load_file
from support.processes import Job

from atk.train.semisupervised import SemiSupervisedTask
from atk.train.semisupervised_config import SemiSupervisedConfig

CONFIG = {
    "device": "cpu",
    "precision": "fp32",  # "auto" depends on the machine
    "steps": 12,
    "batch_size": 4,
    "clip_seconds": 0.5,
    "workers": 0,
    "log_every": 1,
    "save_every": 2,
    "eval_every": 4,
    "optim": {"lr": 0.003},
    "loss": {"learnable": True},
    "model": {
        "dim": 16,
        "audio": {"mel_bins": 16, "channels": [4, 4, 8, 8], "width": 32, "layers": 1, "heads": 2},
        "text": {"width": 32, "layers": 1, "heads": 2},
    },
}


def arguments(folder, out, *more):
    """Command line of a run of 12 steps on `tiny_data`."""
    return [
        "train", "aligned", "--config", str(folder / "tiny.yaml"), "--data", str(folder), "--out", str(out), *more,
    ]  # fmt: skip


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def weights(out):
    return load_file(out / "checkpoints" / "last" / "model.safetensors")


def training_state(out):
    return torch.load(out / "checkpoints" / "last" / "training.pt", weights_only=True)


def kill_at_a_random_moment(command, out, draw):
    """Start the run in another process and SIGKILL it a random number of steps, and a random delay, after the start.

    It has a checkpoint then, also where those are written in the background.
    """
    job = Job("atk.cli.main:main", command)
    steps = draw.randrange(3, 8)  # long before the end
    while job.poll() is None:
        done = (out / "metrics.jsonl").exists() and len((out / "metrics.jsonl").read_text().splitlines()) >= steps
        if done and (out / "checkpoints" / "last").is_dir():
            time.sleep(draw.random() * 0.05)
            break
        time.sleep(0.002)
    job.kill()
    job.wait()


def semisupervised_arguments(data, noises, out, *more):
    return [
        "train", "semisupervised", "--config", str(data / "tiny.yaml"), "--data", str(data), "--out", str(out),
        "--unlabeled", str(noises), *more,
    ]  # fmt: skip


def parsed_config(command):
    """The arguments that `atk train METHOD ...` passes on to the configuration of the method, by name."""
    return _parsed(tuple(map(str, command)))


@functools.cache
def _parsed(command):
    from atk.cli.commands import parse

    _, _, parsed = parse(list(command))
    return parsed[parsed.method]


def semisupervised_config(tiny_data, noises, out, **options):
    flags = [text for name, value in options.items() for text in (f"--{name.replace('__', '.')}", str(value))]
    values = parsed_config(semisupervised_arguments(tiny_data, noises, out, *flags))
    return SemiSupervisedConfig(**{name: values[name] for name in SemiSupervisedConfig.__dataclass_fields__})


def semisupervised_task(tiny_data, noises, tmp_path, **options):
    return SemiSupervisedTask(
        semisupervised_config(tiny_data, noises, tmp_path / "run", **options), torch.device("cpu")
    )


SMALL_CAPTIONER = """
--model.audio.channels [4,4,8,8,8,8] --model.audio.mel_bins 32 --model.audio.dropout 0.1 --model.decoder.width 16
--model.decoder.layers 1 --model.decoder.heads 2 --model.decoder.vocabulary 300 --model.heads 2 --beams 2 --steps 12
--save-every 2 --log-every 1 --eval-every 4 --batch-size 4 --clip-seconds 2 --workers 0 --optim.lr 3e-3
--precision fp32
"""


def difference_arguments(scenes, out, *more):
    pool = ("--mix.references", str(scenes / "pool"))
    return [
        "train",
        "difference",
        "--data",
        str(scenes),
        "--out",
        str(out),
        *pool,
        *SMALL_CAPTIONER.split(),
        *map(str, more),
    ]


UNIFIED = """
--model.dim 16 --model.audio.mel_bins 16 --model.audio.channels [4,4,8,8] --model.audio.width 32 --model.audio.layers 1
--model.audio.heads 2 --model.audio.frame_layer 0 --model.text.width 32 --model.text.layers 1 --model.text.heads 2
--model.decoder.width 16 --model.decoder.layers 1 --model.decoder.heads 2 --model.decoder.vocabulary 300
--model.heads 2 --beams 2 --steps 6 --save-every 2 --log-every 1 --eval-every 3 --batch-size 4 --clip-seconds 2
--workers 0 --optim.lr 3e-3 --loss.learnable true --precision fp32 --device cpu
"""


def unified_arguments(scenes, noises, out, *more):
    pool = ("--mix.references", str(scenes / "pool"))
    return [
        "train", "unified", "--data", str(scenes), "--out", str(out), "--unlabeled", str(noises), *pool,
        *UNIFIED.split(), *map(str, more),
    ]  # fmt: skip
