"""Every example runs at a small size with its library, and its losses and scores match naive implementations."""

import math
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from support.example_cases import example, naive_info_nce, naive_similarity, naive_total


def scenes(folder, sample_rate, count=4):
    """The clips of synthetic scenes, and a batch of them."""
    from atk.data import read_split, train_loader
    from atk.soundscapes import SoundscapeConfig, write_soundscapes

    data = write_soundscapes(folder / "scenes", SoundscapeConfig(train=count, test=0), progress=False)
    clips = read_split(data, "train").clips
    return clips, next(iter(train_loader(clips, sample_rate=sample_rate, clip_seconds=2, batch_size=count)))


def test_op_in_a_script():
    script = example("op_in_a_script")
    result = script.main([])
    assert result["recalls"][0] < 10 and result["recalls"][1] > 50
    assert result["losses"][-1] < result["losses"][0] / 2

    generator = torch.Generator().manual_seed(1)
    pairs = script.draw_pairs(6, torch.eye(16), generator)
    expected = naive_info_nce(naive_similarity(*pairs), 10.0)
    assert script.atk.aligned_info_nce(*pairs[:2], 10.0, *pairs[2:], normalize=True) == pytest.approx(
        expected.item(), rel=1e-5
    )


@pytest.mark.slow
def test_clap_training_loop(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    losses = example("clap_training_loop").main(["--steps", "12"])
    assert losses[-1] < 4 * math.log(16) < losses[0]  # two terms in two directions, log 16 each if nothing is learned


def test_clap_training_loop_hands_over_clips_without_padding(tmp_path):
    loop = example("clap_training_loop")
    _, batch = scenes(tmp_path, 48000)
    rows = loop.rows(batch)
    assert [len(row["audio"]) for row in rows] == batch.lengths.tolist()
    assert [row["caption"] for row in rows] == batch.captions


def test_clap_training_loop_starts_from_a_checkpoint(tmp_path, capsys):
    loop = example("clap_training_loop")
    clips, _ = scenes(tmp_path, 48000)
    for part in loop.small_model([caption for clip in clips for caption in clip.captions]):
        part.save_pretrained(tmp_path / "clap")
    flags = ["--pretrained", tmp_path / "clap", "--data", tmp_path / "scenes", "--steps", 2, "--batch-size", 4]
    losses = loop.main([str(flag) for flag in flags])
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    assert f"step 1: loss {losses[1]:.3f}" in capsys.readouterr().out


@pytest.mark.slow
def test_lightning_module(tmp_path, monkeypatch):
    pytest.importorskip("lightning", reason="optional extra examples")
    monkeypatch.chdir(tmp_path)
    main = example("lightning_module").main
    assert main(["--steps", "15"]) < 0.8 * main(["--steps", "1"])


def test_lightning_module_matches_the_naive_loss(tmp_path):
    pytest.importorskip("lightning", reason="optional extra examples")
    script = example("lightning_module")
    clips, batch = scenes(tmp_path, 16000)
    model = script.CLAP.create(script.ModelConfig(dim=16), [caption for clip in clips for caption in clip.captions])
    module = script.AlignedCLAP(model.eval(), clips, 4)
    shares = []
    for rank in range(2):
        module._trainer = SimpleNamespace(global_rank=rank, world_size=2)
        shares.append([share.files for share in islice(module.train_dataloader(), 2)])
    for first, second in zip(*shares, strict=True):
        assert len(first) == len(second) == 2 and {*first, *second} == {clip.file_name for clip in clips}
    module._trainer = None
    with torch.no_grad():
        audio, text = model(batch.audio, batch.lengths, model.tokenize(batch.captions))
        loss = module.training_step(batch, 0)
    embeddings = {"audio": audio.pooled, "text": text.pooled, "frames": audio.frames, "tokens": text.tokens}
    expected = naive_total(embeddings | {"frame_mask": audio.mask, "token_mask": text.mask}, 5.0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
