"""A transformers.ClapModel as a CLAP: vectors, frames, saving, and commands."""

import json

import numpy as np
import pytest
import torch
import yaml
from support.clap_features import RATE, clips, transformers_features
from support.published_models import CAPTIONS, clap_folder
from support.runs import CONFIG

from atk.cli.main import main
from atk.models import from_pretrained
from atk.models.clap import CLAP, ModelConfig
from atk.models.clap_config import with_layer_numbers
from atk.models.clap_transformers import ClapConfig
from atk.models.tokenizer import import_transformers


@pytest.fixture(params=[False, True], ids=["plain", "fused"])
def published(request, tmp_path):
    """A folder like one on the hub, the model in it, and its feature extractor."""
    folder = tmp_path / "clap"
    model = clap_folder(folder, request.param)
    return folder, model, import_transformers().ClapFeatureExtractor.from_pretrained(folder)


def load(folder, **options):
    return CLAP.create(ModelConfig(clap=ClapConfig(str(folder), **options)), CAPTIONS).eval()


def test_vectors_match_the_clap_model(published):
    folder, theirs, extractor = published
    ours = load(folder)
    audio, lengths = clips(10, 4.2)
    inputs = {"input_features": transformers_features(extractor, audio, lengths), "is_longer": torch.zeros(2, 1).bool()}
    tokens = ours.tokenize(CAPTIONS)
    with torch.no_grad():
        expected = (
            theirs.get_audio_features(**inputs),
            theirs.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]),
        )
        embeddings = ours.embed_audio(audio, lengths).pooled, ours.embed_text(CAPTIONS).pooled
    for embedding, output in zip(embeddings, expected, strict=True):
        features = output if isinstance(output, torch.Tensor) else output.pooler_output  # transformers 4 or 5
        torch.testing.assert_close(embedding, torch.nn.functional.normalize(features, dim=-1), rtol=1e-4, atol=1e-5)
    assert ours.dim == 24 and ours.token_width == 64 and ours.sample_rate == RATE
    assert not any("logit_scale" in name for name in ours.state_dict())


@pytest.mark.slow
def test_published_sizes():
    """Only the audio encoder is built; most weights are in the text encoder."""
    from atk.models.htsat import HTSAT

    transformers = import_transformers()
    config = transformers.ClapConfig()
    encoder = HTSAT(transformers.ClapAudioModel(config.audio_config), transformers.ClapFeatureExtractor())
    with torch.no_grad():
        pooled, frames, mask = encoder.eval()(torch.randn(1, 9 * RATE), torch.tensor([9 * RATE]))
    assert pooled.shape == (1, 768) and frames.shape == (1, 32, 768) and config.projection_dim == 512
    assert encoder.frame_seconds == 0.3125 and mask.sum() == 28  # 28 x 0.3125 s = 8.75 s


def test_frames_are_in_order_of_time(published):
    """Without attention, a frame depends only on the audio at its own time."""
    encoder = load(published[0]).audio_encoder
    audio, lengths = clips(10)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "attention.output.dense" in name:
                parameter.zero_()
        pooled, frames, mask = encoder(audio, lengths)
        assert frames.shape == (1, encoder.frames, 16) and mask.all()
        torch.testing.assert_close(frames.mean(1), pooled, rtol=1e-4, atol=1e-5)
        for frame in (0, 1, 8, 15, 16, 30, 31):
            start = (frame + 0.3) * encoder.frame_seconds
            changed = audio.clone()
            changed[:, int(start * RATE) : int((start + 0.1) * RATE)] *= 30
            change = (encoder(changed, lengths)[1] - frames).abs().amax(2)[0]
            assert change.argmax() == frame and (change > 0.01 * change.max()).sum() == 1


def test_frames_of_short_clips_end_with_the_clip(published):
    model = load(published[0])
    audio, lengths = clips(10, 9.91, 3, 0.1, 12)
    with torch.no_grad():
        mask = model.encode_audio(audio, lengths).mask
    assert model.frame_seconds == 10 / 32
    assert mask.sum(1).tolist() == [32, 31, 9, 1, 32]
    assert (mask.int().diff(dim=1) <= 0).all()


def test_the_spectrogram_to_draw_is_neither_repeated_nor_truncated(published):
    model = load(published[0])
    for seconds in (0.001, 3, 12):
        audio, lengths = clips(seconds)
        mel = model.log_mel(audio, lengths)
        assert mel.shape[1] == max(int(lengths), 1024) // 480 + 1 and mel.isfinite().all()


def test_gradients_reach_both_encoders(published):
    model = load(published[0]).train()
    pseudo = torch.randn(4, 2, model.token_width, requires_grad=True)
    audio, text = model.encode_audio(*clips(1, 2, 3, 4)), model.encode_text(model.tokenize(CAPTIONS, 2), pseudo)
    (audio.pooled.square().sum() + audio.frames.sum() + (text.pooled * text.tokens[:, 1]).sum()).backward()
    missing = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    # Key biases cancel in the softmax, and fusion layers act only on clips longer than these.
    unused = {name for name in missing if not name.endswith("key.bias")}
    assert all("fusion_model" in name or "mel_conv2d" in name for name in unused), unused
    assert (pseudo.grad.abs().amax(2) > 0).all()


@pytest.mark.parametrize("tokenizer", [True, False], ids=["with a tokenizer", "without"])
def test_saved_model_loads_unchanged(tmp_path, tokenizer, capsys):
    clap_folder(tmp_path / "clap", tokenizer=tokenizer)
    model = load(tmp_path / "clap")
    assert ("has no tokenizer" in capsys.readouterr().err) != tokenizer
    model.save_pretrained(tmp_path / "saved")
    (tmp_path / "clap").rename(tmp_path / "gone")
    again = from_pretrained(tmp_path / "saved")
    assert again.config == model.config and not again.training
    assert model.state_dict().keys() == again.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    audio, lengths = clips(4, 2)
    with torch.no_grad():
        assert torch.equal(model.embed_audio(audio, lengths).frames, again.embed_audio(audio, lengths).frames)
        for before, after in zip(model.embed_text(CAPTIONS), again.embed_text(CAPTIONS), strict=True):
            assert torch.equal(before, after)


def test_weights_are_loaded_and_kept_in_float32(tmp_path):
    theirs = clap_folder(tmp_path)
    theirs.half().save_pretrained(tmp_path)
    state = load(tmp_path).state_dict()
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}
    words = theirs.text_model.embeddings.word_embeddings.weight
    assert torch.equal(state["text_encoder.model.embeddings.word_embeddings.weight"], words.float())
    assert not torch.equal(load(tmp_path, random_init=True).state_dict()["audio_projection.linear1.weight"],
                           state["audio_projection.linear1.weight"])  # fmt: skip


def test_from_pretrained_loads_a_clap_model(tmp_path):
    clap_folder(tmp_path)
    model = from_pretrained(tmp_path)
    assert torch.equal(model.embed_text(CAPTIONS).pooled, load(tmp_path).embed_text(CAPTIONS).pooled)


def test_special_tokens_of_a_trained_tokenizer_have_robertas_ids(tmp_path):
    clap_folder(tmp_path, tokenizer=False)
    encoder = load(tmp_path, random_init=True).text_encoder
    ids = encoder.tokenize(["a dog barks", "engine"])["input_ids"]
    assert ids[:, 0].tolist() == [0, 0] and ids[0, -1] == 2 and ids[1, -1] == 1
    assert len(encoder.tokenizer) <= 400 and encoder.tokenizer.decode(ids[0], True).strip() == "a dog barks"


def test_random_weights_follow_the_seed(tmp_path):
    clap_folder(tmp_path)
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(load(tmp_path, random_init=True).state_dict())
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())


def test_configurations_older_than_clap_models_can_be_read():
    saved = json.loads(json.dumps(ModelConfig().__dict__, default=lambda value: value.__dict__))
    del saved["clap"], saved["audio"]["frame_layer"], saved["text"]["token_layer"]
    old = ModelConfig.from_dict(saved)
    assert with_layer_numbers(old) == old == with_layer_numbers(ModelConfig(), low=False) and not old.clap.enabled


def not_a_clap(path):
    transformers = import_transformers()
    transformers.BertConfig().save_pretrained(path)


def lacking_weights(path):
    from safetensors.torch import load_file, save_file

    clap_folder(path)
    state = load_file(path / "model.safetensors")
    del state["text_projection.linear1.weight"]
    save_file(state, path / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "clap.pretrained: cannot load"),
        (not_a_clap, "expected model type 'clap', got 'bert'"),
        (lacking_weights, r"lacks weights \(1 in all; the first is text_projection.linear1.weight\)"),
        (lambda path: clap_folder(path, tokenizer=False, vocab_size=200), "entries, the text model only 200"),
        (lambda path: clap_folder(path, tokenizer=False, pad_token_id=0), "pads with token 1, the text model with 0"),
    ],
)
def test_errors(tmp_path, make, message):
    folder = tmp_path / "clap"
    folder.mkdir()
    make(folder)
    with pytest.raises(ValueError, match=message):
        load(folder)


@pytest.mark.slow
def test_training_and_use_from_the_command_line(tiny_data, tmp_path, capsys):
    clap_folder(tmp_path / "clap")
    out = tmp_path / "run"
    settings = {**CONFIG, "steps": 3}
    del settings["model"]
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    command = ["train", "aligned", "--config", str(tmp_path / "settings.yaml"), "--data", str(tiny_data)]
    main([*command, "--out", str(out), "--model.clap.pretrained", str(tmp_path / "clap")])
    assert yaml.safe_load((out / "config.yaml").read_text())["model"]["clap"]["pretrained"] == str(tmp_path / "clap")
    (tmp_path / "clap").rename(tmp_path / "gone")
    main(["train", "aligned", "--data", str(tiny_data), "--out", str(out), "--resume", "--steps", "4"])
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines() if "loss" in line]
    assert steps == [1, 2, 3, 4]
    assert "uses only the first" not in capsys.readouterr().err
    device = ["--device", "cpu"]
    main(["evaluate", str(out), "--data", str(tiny_data), *device])
    assert json.loads(capsys.readouterr().out)["clips"] == 6
    main(["align", str(out), str(tiny_data / "test 0.wav"), "a low tone", "--out", str(tmp_path / "map.png"), *device])
    times = np.genfromtxt(tmp_path / "map.csv", delimiter=",", max_rows=1)[1:]
    assert len(times) and np.nanmax(times) < 1  # the clip is shorter than a second
    main(["search", str(out), str(tiny_data), "a high tone", "--top", "3", *device])
    assert len(capsys.readouterr().out.splitlines()) == 5  # align printed two lines
    main(["evaluate", str(tmp_path / "gone"), "--data", str(tiny_data), *device])
    assert json.loads(capsys.readouterr().out)["clips"] == 6
    main(["evaluate", str(out), "--data", str(tiny_data), *device, "--clip-seconds", "12"])
    assert "this model uses only the first 10 s of each window of 12 s" in capsys.readouterr().err
    main([*command, "--out", str(tmp_path / "long"), "--init", str(out), "--clip-seconds", "10.5", "--steps", "1"])
    assert capsys.readouterr().err.count("this model uses only the first 10 s of each window of 10.5 s") == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision_give_nearly_the_same_vectors(published, dtype):
    model = load(published[0])
    audio, lengths = clips(10, 4.2)
    with torch.no_grad():
        expected = model.embed_audio(audio, lengths).pooled, model.embed_text(CAPTIONS).pooled
        model.to(dtype)
        got = model.embed_audio(audio, lengths).pooled, model.embed_text(CAPTIONS).pooled
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.cosine_similarity(ours, theirs).min() > 0.99
