"""The open_clip example on a stand-in with its structure, and on open_clip itself if it is installed and has CLAP."""

import importlib
import importlib.util
import json
import math

import pytest
import torch
from support.clap_stand_in import ClapStandIn
from support.example_cases import example, naive_total


def test_open_clip_hooks_capture_frames_and_tokens():
    script = example("open_clip_towers")
    clap = ClapStandIn().eval()
    towers, waveforms = script.Towers(clap, [0, 1, 2]), torch.randn(4, 100)
    input_ids = torch.tensor([[0, 5, 6, 2], [0, 7, 2, 1], [0, 8, 9, 2], [0, 4, 2, 1]])
    embeddings = towers(waveforms, input_ids)
    assert embeddings["frames"].shape == (4, 3, 8)
    torch.testing.assert_close(embeddings["frames"].mean(1), embeddings["audio"])
    assert embeddings["token_mask"].tolist() == [[False, True, True, False], [False, True, False, False]] * 2
    text = clap.text.transformer(input_ids=input_ids, attention_mask=(input_ids != 1).long())
    torch.testing.assert_close(embeddings["tokens"], clap.text.proj(text.last_hidden_state))
    loss = script.atk.nn.AlignedContrastiveLoss(0.07)(**embeddings)
    assert loss.item() == pytest.approx(naive_total(embeddings, 1 / 0.07).item(), rel=1e-5)
    loss.backward()
    assert clap.audio.encoder.weight.grad.abs().sum() > 0
    assert clap.text.transformer.embeddings.word_embeddings.weight.grad.abs().sum() > 0


def test_open_clip_frames_are_normalized_if_the_tower_normalizes():
    clap = ClapStandIn().eval()
    towers = example("open_clip_towers").Towers(clap, [0, 1, 2])
    waveforms, input_ids = torch.randn(1, 100), torch.tensor([[0, 5, 2]])
    before = clap.audio.encoder(x={"waveform": waveforms})["fine_grained_embedding"][:, ::32]
    clap.audio.pre_norm = True
    frames = towers(waveforms, input_ids)["frames"]
    torch.testing.assert_close(frames, clap.audio.proj(before / before.norm(dim=-1, keepdim=True)))


def test_short_clips_are_repeated_for_open_clip():
    filled = example("open_clip_towers").fill(torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([3, 2]), 7)
    assert filled.tolist() == [[1, 2, 3, 1, 2, 3, 1], [4, 5, 4, 5, 4, 5, 4]]


def test_open_clip_towers_with_open_clip(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        open_clip = importlib.import_module("open_clip")
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision built for a different torch
        pytest.skip(f"open_clip cannot be imported: {str(error).splitlines()[0]}")
    if importlib.util.find_spec("open_clip.clap_model") is None:
        pytest.skip(f"open_clip {open_clip.__version__} has no CLAP")
    pytest.importorskip("torchlibrosa", reason="open_clip's HTS-AT needs torchlibrosa")
    from atk.models.tokenizer import import_transformers, train_bpe

    text, transformers = tmp_path / "roberta", import_transformers()
    names = {
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    train_bpe(["a dog barks", "rain falls"], 300, names, "<s> $A </s>").save_pretrained(text)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.RobertaModel(transformers.RobertaConfig(vocab_size=300, **sizes)).save_pretrained(text)
    audio = {"model_type": "HTSAT", "model_name": "tiny", "clip_samples": 96000, "sample_rate": 48000}
    tower = {"hf_model_name": str(text), "hf_tokenizer_name": str(text), "hf_pooler_type": "mean_pooler"}
    tower["hf_proj_type"] = "mlp"
    (tmp_path / "tiny-clap.json").write_text(json.dumps({"embed_dim": 24, "audio_cfg": audio, "text_cfg": tower}))
    open_clip.add_model_config(tmp_path / "tiny-clap.json")
    losses = example("open_clip_towers").main(["--model", "tiny-clap", "--steps", "2"])
    assert len(losses) == 2 and all(map(math.isfinite, losses))
