"""LAION-CLAP against ClapModel with the same weights and, if it is installed, the laion_clap package."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.clap_features import RATE, clips
from support.published_models import CAPTIONS, Laion, MsClap, clap_folder

from atk.models import from_pretrained
from atk.models.clap import CLAP, ModelConfig
from atk.models.clap_transformers import ClapConfig


@pytest.fixture(params=[False, True], ids=["plain", "fused"])
def published(request, tmp_path):
    return Laion(tmp_path, request.param)


def load(published):
    return from_pretrained(published.file, str(published.tokenizer))


def features_of(output):
    return output if isinstance(output, torch.Tensor) else output.pooler_output  # transformers 4 or 5


@torch.no_grad()
def test_vectors_match_the_clap_model(published):
    ours, (audio, lengths) = load(published), clips(10, 4.2)
    tokens = ours.tokenize(CAPTIONS)
    text = published.model.get_text_features(tokens["input_ids"], attention_mask=tokens["attention_mask"])
    torch.testing.assert_close(
        ours.embed_text(CAPTIONS).pooled, F.normalize(features_of(text), dim=-1), rtol=0, atol=1e-6
    )
    rows = [row[:length].numpy() for row, length in zip(audio, lengths.tolist(), strict=True)]
    mel = published.extractor(rows, sampling_rate=RATE, return_tensors="pt")["input_features"].float()
    theirs = published.model.get_audio_features(input_features=mel, is_longer=torch.zeros(2, 1).bool())
    torch.testing.assert_close(
        ours.embed_audio(audio, lengths).pooled, F.normalize(features_of(theirs), dim=-1), rtol=0, atol=1e-5
    )


@torch.no_grad()
def test_a_loaded_model_is_saved_and_loaded_unchanged(published, tmp_path):
    model, (audio, lengths) = load(published), clips(2, 1)
    model.save_pretrained(tmp_path / "saved")
    published.file.unlink()
    published.tokenizer.rename(tmp_path / "gone")
    again = from_pretrained(tmp_path / "saved")
    assert torch.equal(model.embed_audio(audio, lengths).frames, again.embed_audio(audio, lengths).frames)
    assert torch.equal(model.embed_text(CAPTIONS).tokens, again.embed_text(CAPTIONS).tokens)


def test_random_weights_in_the_architecture_of_a_file(published):
    config = ModelConfig(clap=ClapConfig(str(published.file), random_init=True, tokenizer=str(published.tokenizer)))
    random, ours = CLAP.create(config, []).state_dict(), load(published).state_dict()
    assert random.keys() == ours.keys()
    assert not torch.equal(random["audio_projection.linear1.weight"], ours["audio_projection.linear1.weight"])


def test_checkpoints_may_hold_numpy_scalars_and_half_precision(published):
    state = {name: value.half() if value.is_floating_point() else value for name, value in published.state().items()}
    torch.save({"state_dict": state, "best": np.float64(0.5), "step": np.int64(3)}, published.file)
    weights = load(published).state_dict()
    assert {value.dtype for value in weights.values()} == {torch.float32, torch.int64}


def renamed(old, new):
    def change(state):
        state[new] = state.pop(old)

    return change


QKV = "audio_branch.layers.1.blocks.1.attn.qkv"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed(f"{QKV}.bias", f"{QKV}.offset"), f"is not LAION-CLAP: it lacks {QKV}.bias"),
        (renamed("audio_branch.patch_embed.proj.weight", "x"), "it lacks audio_branch.patch_embed.proj.weight"),
        (renamed("text_branch.pooler.dense.weight", "x"), "it lacks text_branch.pooler.dense.weight"),
        (renamed("audio_projection.2.bias", "audio_projection.3.bias"), "it lacks audio_projection.2.bias"),
        (renamed("logit_scale_t", "logit_scale"), "it lacks logit_scale_t"),
        (
            lambda state: state.update({"audio_branch.fifth": torch.ones(2)}),
            "that this model lacks: audio_branch.fifth",
        ),
        (
            lambda state: state.update({f"text_branch.a{n}": torch.ones(2) for n in range(5)}),
            "text_branch.a2 and 2 more",
        ),
        (
            lambda state: state.update({"audio_branch.norm.bias": torch.ones(3)}),
            r"shape of audio_branch.norm.bias, \[3\]",
        ),
        (
            lambda state: state.update({"text_branch.embeddings.token_type_embeddings.weight": torch.ones(2, 64)}),
            "its text encoder is not RoBERTa: it has 2 types of tokens",
        ),
        (lambda state: state["audio_branch.logmel_extractor.melW"].mul_(1.1), "melW is not the mel filters from 50 to"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, change, message):
    published = Laion(tmp_path)
    state = published.state()
    change(state)
    published.save(state)
    with pytest.raises(ValueError, match=message):
        load(published)


def test_the_layout_of_a_file_is_recognized(tmp_path):
    published = MsClap(tmp_path)
    assert from_pretrained(published.file, str(published.tokenizer)).config.msclap.weights == str(published.file)
    for content, message in (
        ({"a.weight": torch.ones(2)}, "holds neither LAION-CLAP nor MS-CLAP 2023: its first weight is a.weight"),
        ({"epoch": 3}, "cannot read the weights in .*: it holds no tensors by name"),
        (torch.ones(3), "cannot read the weights in .*: it holds no tensors by name"),
    ):
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(ValueError, match=message):
            from_pretrained(tmp_path / "other.pt")
    (tmp_path / "other.pt").write_bytes(published.file.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=r"cannot read the weights in .*other\.pt: "):
        from_pretrained(tmp_path / "other.pt")


def test_a_missing_tokenizer_is_named(tmp_path):
    published = Laion(tmp_path)
    with pytest.raises(ValueError, match=r"clap\.tokenizer: cannot load .*elsewhere"):
        from_pretrained(published.file, str(tmp_path / "elsewhere"))


@torch.no_grad()
@pytest.mark.parametrize("long_clips", ["start", "crop", "fusion"])
def test_embeddings_do_not_depend_on_the_batch(tmp_path, long_clips):
    model = load(Laion(tmp_path, fusion=True))
    model.audio_encoder.use_long_clips(long_clips)
    audio, lengths = clips(25, 3.1, 0.2, 10.004, 12)
    batch = model.embed_audio(audio, lengths)
    for row in (3, 0, 4, 1, 2):
        length = int(lengths[row])
        alone = model.embed_audio(audio[row : row + 1, :length], lengths[row : row + 1])
        torch.testing.assert_close(alone.pooled[0], batch.pooled[row], rtol=0, atol=1e-5)
        valid = batch.mask[row]
        torch.testing.assert_close(alone.frames[0][alone.mask[0]], batch.frames[row][valid], rtol=0, atol=1e-5)


@torch.no_grad()
def test_fusion_matches_the_extractor_with_the_same_chunks(tmp_path, monkeypatch):
    published = Laion(tmp_path, fusion=True)
    model, (audio, lengths) = load(published), clips(25, 10.004, 3)
    model.audio_encoder.use_long_clips("fusion")
    for row, length in enumerate(lengths.tolist()):
        monkeypatch.setattr(np.random, "choice", np.random.default_rng(length).choice)
        inputs = published.extractor(audio[row, :length].numpy(), sampling_rate=RATE, return_tensors="pt")
        longer = torch.tensor([[row == 0]])  # 10.004 s fit; for shorter batches the extractor marks a clip at random
        theirs = published.model.get_audio_features(input_features=inputs["input_features"].float(), is_longer=longer)
        ours = model.embed_audio(audio[row : row + 1], lengths[row : row + 1]).pooled
        torch.testing.assert_close(ours, F.normalize(features_of(theirs), dim=-1), rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_crop_lies_inside_the_clip(tmp_path):
    model, (audio, lengths) = load(Laion(tmp_path)), clips(25, 3)
    start = model.embed_audio(audio, lengths).pooled
    model.audio_encoder.use_long_clips("crop")
    crop = model.embed_audio(audio, lengths).pooled
    assert torch.equal(crop[1], start[1]) and not torch.allclose(crop[0], start[0], atol=1e-4)
    with pytest.raises(ValueError, match="long_clips must be 'start' or 'crop' for a model without feature fusion"):
        model.audio_encoder.use_long_clips("fusion")
    with pytest.raises(ValueError, match="long_clips must be one of"):
        model.audio_encoder.use_long_clips("end")


def test_outputs_match_the_laion_clap_package(tmp_path, monkeypatch):
    transformers_model = pytest.importorskip("laion_clap.clap_module.model", reason="laion_clap is not installed")
    from atk.models.tokenizer import import_transformers

    transformers = import_transformers()
    roberta = transformers.RobertaModel(
        transformers.RobertaConfig(
            vocab_size=400, num_hidden_layers=1, intermediate_size=64, max_position_embeddings=82, type_vocab_size=1
        )
    )
    monkeypatch.setattr(transformers_model.RobertaModel, "from_pretrained", lambda name: roberta)
    audio = {"window_size": 1024, "hop_size": 480, "mel_bins": 64, "model_type": "HTSAT", "model_name": "tiny"}
    text = {"context_length": 77, "vocab_size": 1, "width": 512, "heads": 8, "layers": 12, "model_type": "roberta"}
    theirs = transformers_model.CLAP(768, audio, text).eval()
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "weights.pt")
    clap_folder(tmp_path / "tokenizer")
    model = from_pretrained(tmp_path / "weights.pt", str(tmp_path / "tokenizer"))
    waves, lengths = clips(10, 10)
    tokens = {name: model.tokenize(CAPTIONS)[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = theirs.get_audio_embedding([{"waveform": wave} for wave in waves])
        torch.testing.assert_close(model.embed_audio(waves, lengths).pooled, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(
            model.embed_text(CAPTIONS).pooled, theirs.get_text_embedding(tokens), rtol=0, atol=1e-5
        )
