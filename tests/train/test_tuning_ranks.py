"""Fine-tuning on two ranks, replicated and sharded, equals that on one process, also if the run moves between them."""

import pytest
import torch
from support.processes import start_ranks
from support.runs import arguments, rows, weights

from atk.cli.main import main

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch has no gloo"),
    pytest.mark.slow,
]

# A constant learning rate, so that a run of 6 steps is the first half of one of 12; each rank draws its own dropout.
SAME = (
    *("--optim.warmup", "0", "--optim.final", "1", "--model.audio.dropout", "0", "--model.text.dropout", "0"),
    *("--batch-size", "6", "--ema", "0.9", "--spec-augment.time-masks", "2", "--spec-augment.mel-masks", "1"),
)
FULL = (
    *("--optim.weight-decay", "0.1", "--optim.layer-decay", "0.7", "--optim.text-lr", "1e-3"),
    *("--tune.freeze", "[text_encoder.*word_embeddings*]", "--tune.unfreeze-every", "2"),
)
ADAPTERS = ("--tune.lora.rank", "2")


def curve(out):
    return [row["loss"] for row in rows(out) if "loss" in row]


@pytest.mark.parametrize(
    ("options", "shard"),
    [
        (ADAPTERS, "true"),
        pytest.param(FULL, "true", marks=pytest.mark.exhaustive),
        pytest.param(FULL, "false", marks=pytest.mark.exhaustive),
        pytest.param(ADAPTERS, "false", marks=pytest.mark.exhaustive),
    ],
)
def test_two_ranks_train_like_one_and_one_continues_their_run(tiny_data, tmp_path, options, shard):
    whole, run = tmp_path / "whole", tmp_path / "run"
    main(arguments(tiny_data, whole, *SAME, *options))
    command = arguments(tiny_data, run, *SAME, *options, "--steps", "6", "--shard", shard, "--micro-batch", "2")
    job = start_ranks(2, "atk.cli.main:main", command)
    assert job.wait() == 0, job.output
    assert (run / "checkpoints" / "last" / "shards").is_dir() == (shard == "true")
    main(["train", "aligned", "--out", str(run), "--resume", "--steps", "12", "--shard", "false"])
    assert curve(run) == pytest.approx(curve(whole), rel=1e-3)
    ours, expected = weights(run), weights(whole)
    assert ours.keys() == expected.keys()
    # Attention does not depend on the bias of its keys: the gradient is rounding, which Adam scales up.
    for name, value in ours.items():
        if name.endswith(("in_proj_bias", "key.bias")):
            continue
        torch.testing.assert_close(value, expected[name], rtol=1e-2, atol=1e-3, msg=lambda text, n=name: f"{n}: {text}")
