"""Exported models give the embeddings of the original, and loading them again does, too."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from support.clap_features import clips, transformers_features
from support.published_models import CAPTIONS, Laion
from support.sources import SOURCES, run
from support.tiny_clap import tiny_clap

from atk.cli.main import main
from atk.eval.model_card import model_card
from atk.models import from_pretrained
from atk.models.export import TOKEN_INPUTS, AudioTower, TextTower, export_model
from atk.models.tokenizer import import_transformers


def features_of(output):
    return output if isinstance(output, torch.Tensor) else output.pooler_output  # transformers 4 or 5


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("fusion", [False, True], ids=["plain", "fused"])
def test_laion_clap_survives_every_hop(tmp_path, fusion):
    """From its file to atk, to a ClapModel folder, to transformers, and to atk again."""
    published = Laion(tmp_path, fusion)
    model, (audio, lengths) = from_pretrained(published.file, str(published.tokenizer)), clips(10, 4.2, 1)
    expected = model.embed_audio(audio, lengths).pooled, model.embed_text(CAPTIONS).pooled
    main(["export", str(published.file), str(tmp_path / "clap"), "--tokenizer", str(published.tokenizer)])

    transformers = import_transformers()
    clap = transformers.ClapModel.from_pretrained(tmp_path / "clap").eval()
    processor = transformers.ClapProcessor.from_pretrained(tmp_path / "clap")
    mel = transformers_features(processor.feature_extractor, audio, lengths)
    tokens = processor.tokenizer(CAPTIONS, padding=True, return_tensors="pt")
    theirs = (
        features_of(clap.get_audio_features(input_features=mel, is_longer=torch.zeros(3, 1).bool())),
        features_of(clap.get_text_features(tokens["input_ids"], attention_mask=tokens["attention_mask"])),
    )
    again = from_pretrained(tmp_path / "clap")
    for ours, hop, last in zip(
        expected, theirs, (again.embed_audio(audio, lengths).pooled, again.embed_text(CAPTIONS).pooled), strict=True
    ):
        torch.testing.assert_close(F.normalize(hop, dim=-1), ours, rtol=0, atol=1e-5)
        torch.testing.assert_close(last, ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize("trained", [False, True])
def test_a_clap_model_folder_keeps_the_logit_scales(tmp_path, trained):
    transformers = import_transformers()
    source, _ = SOURCES["clap_model"](tmp_path)
    clap = transformers.ClapModel.from_pretrained(source)
    expected = (math.log(20), math.log(40))
    clap.logit_scale_a.data.fill_(expected[0])
    clap.logit_scale_t.data.fill_(expected[1])
    clap.save_pretrained(source)
    if trained:
        checkpoint = tmp_path / "run" / "checkpoints" / "last"
        from_pretrained(source).save_pretrained(checkpoint)
        torch.save({"criterion": {"log_logit_scale": torch.tensor(math.log(33))}}, checkpoint / "training.pt")
        source, expected = tmp_path / "run", (math.log(33), math.log(33))
    main(["export", str(source), str(tmp_path / "out")])
    clap = transformers.ClapModel.from_pretrained(tmp_path / "out")
    assert (clap.logit_scale_a.item(), clap.logit_scale_t.item()) == pytest.approx(expected)


@torch.no_grad()
@pytest.mark.parametrize("name", ["msclap", "saved"])
def test_other_towers_survive_saving_but_are_no_clap_model(tmp_path, name):
    source, tokenizer = SOURCES[name](tmp_path)
    model = from_pretrained(source, tokenizer)
    model.save_pretrained(tmp_path / "copy")
    again, (audio, lengths) = from_pretrained(tmp_path / "copy"), clips(2, 1, rate=model.sample_rate)
    assert torch.equal(model.embed_audio(audio, lengths).pooled, again.embed_audio(audio, lengths).pooled)
    assert torch.equal(model.embed_text(CAPTIONS).pooled, again.embed_text(CAPTIONS).pooled)
    with pytest.raises(ValueError, match="format: only the towers of a ClapModel can be saved as one, got"):
        export_model(model, tmp_path / "out", "transformers")


def test_a_program_holds_the_weights_of_its_tower_alone():
    model = tiny_clap()
    for tower, name in ((AudioTower, "audio"), (TextTower, "text")):
        parts = [model.get_submodule(f"{name}_{part}") for part in ("encoder", "projection")]
        assert [*map(id, tower(model).parameters())] == [id(value) for part in parts for value in part.parameters()]


@torch.no_grad()
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["saved", "clap_model", "fused", "msclap"])
def test_programs_take_any_number_of_clips_and_texts(tmp_path, name):
    source, tokenizer = SOURCES[name](tmp_path)
    model = from_pretrained(source, tokenizer)
    assert export_model(model, tmp_path / "out", "torch-export") < 1e-5
    text = torch.export.load(tmp_path / "out" / "text.pt2").module()
    for texts in (["rain", "snow"], ["a dog barks and barks and barks", "wind", "an engine", "a bell", "waves"]):
        pooled, tokens, mask, _ = text(*(model.tokenize(texts)[key] for key in TOKEN_INPUTS))
        expected = model.embed_text(texts)
        torch.testing.assert_close(pooled, expected.pooled, rtol=0, atol=1e-5)
        torch.testing.assert_close(tokens[mask], expected.tokens[expected.mask], rtol=0, atol=1e-5)
    audio = torch.export.load(tmp_path / "out" / "audio.pt2").module()
    for count, samples in ((2, 2560), (7, 5000), (2, 48321)):
        waves, lengths = 0.1 * torch.randn(count, samples), torch.randint(1, samples, (count,))
        pooled, frames, mask = audio(waves, lengths)
        expected = model.embed_audio(waves, lengths)
        torch.testing.assert_close(pooled, expected.pooled, rtol=0, atol=1e-5)
        torch.testing.assert_close(frames[mask], expected.frames[expected.mask], rtol=0, atol=1e-5)
    waves = torch.randn(1, 9000)
    padded = audio(F.pad(waves, (0, 7000, 0, 1)), torch.tensor([9000, 1]))
    alone = model.embed_audio(waves, torch.tensor([9000]))
    torch.testing.assert_close(padded[0][:1], alone.pooled, rtol=0, atol=1e-5)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["saved", "clap_model", "fused", "msclap"])
def test_onnx(tmp_path, name):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    source, tokenizer = SOURCES[name](tmp_path)
    assert export_model(from_pretrained(source, tokenizer), tmp_path / "out", "onnx") < 1e-4


def test_the_model_card_tells_what_the_run_was(tmp_path, monkeypatch, capsys):
    from atk.models import export

    folder, _ = run(tmp_path)
    (folder / "config.yaml").write_text("data: [clotho, audiocaps]\nsteps: 500\nclip_seconds: 5.0\n")
    (folder / "summary.json").write_text(json.dumps({"metrics": {"text_to_audio": {"R@1": 12.5}, "skipped": []}}))
    monkeypatch.setattr(export, "_write_programs", lambda model, folder: 0.0)
    main(["export", str(folder), str(tmp_path / "out"), "--format", "torch-export"])
    card = (tmp_path / "out" / "README.md").read_text()
    for line in (
        "| data | clotho, audiocaps |",
        "| steps | 500 |",
        "| text_to_audio R@1 | 12.5 |",
        'audio = torch.export.load("audio.pt2").module()',
        f"`atk export {folder} {tmp_path / 'out'} --format torch-export`",
    ):
        assert line in card
    assert "largest difference from the model 0.0e+00" in capsys.readouterr().out
    monkeypatch.setattr(export, "_write_programs", lambda model, folder: 0.5)
    with pytest.raises(ValueError, match=r"the exported model differs from the model by up to 5\.0e-01"):
        export_model(from_pretrained(folder), tmp_path / "other", "torch-export")


def test_a_damaged_summary_is_named(tmp_path):
    folder, _ = run(tmp_path)
    (folder / "summary.json").write_text('{"metrics"')
    with pytest.raises(ValueError, match=r"summary\.json: damaged or cut short \("):
        model_card(from_pretrained(folder), folder, "clap", "atk export")


def test_a_pushed_folder_is_uploaded_as_a_whole(tmp_path, monkeypatch, capsys):
    import huggingface_hub

    calls = []

    class Hub:
        def create_repo(self, name, exist_ok):
            calls.append((name, exist_ok))
            return f"https://hub/{name}"

        def upload_folder(self, repo_id, folder_path):
            calls.append((repo_id, sorted(path.name for path in folder_path.iterdir())))
            if repo_id == "me/full":
                raise OSError("no space")

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    source, _ = SOURCES["clap_model"](tmp_path)
    main(["export", str(source), str(tmp_path / "out"), "--push", "me/clap"])
    assert capsys.readouterr().out.splitlines()[-1] == "https://hub/me/clap"
    assert calls[0] == ("me/clap", True) and {"README.md", "config.json", "model.safetensors"} <= set(calls[1][1])
    with pytest.raises(SystemExit):
        main(["export", str(source), str(tmp_path / "again"), "--push", "me/full"])
    assert "push: cannot upload to 'me/full': no space" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["export", str(source), str(tmp_path / "out")])
    assert "out exists and is not an empty folder" in capsys.readouterr().err
