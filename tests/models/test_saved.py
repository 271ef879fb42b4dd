"""Saved models: loading from a run folder and from its checkpoint, and errors for damaged files."""

import shutil

import pytest
import torch
from support.tiny_captioner import tiny as tiny_captioner
from support.tiny_clap import tiny_clap

import atk.models
from atk.models.captioner import Captioner
from atk.models.clap import CLAP

MODELS = {CLAP: tiny_clap, Captioner: tiny_captioner}


@pytest.fixture(scope="module", params=MODELS, ids=lambda model: model.__name__)
def original(request, tmp_path_factory):
    """A model class, a model, and a run folder whose best checkpoint is this model and whose last one is another."""
    model, run = MODELS[request.param](), tmp_path_factory.mktemp("run")
    model.save_pretrained(run / "checkpoints" / "step-00000001")
    MODELS[request.param]().save_pretrained(run / "checkpoints" / "step-00000002")
    for name, step in (("best", 1), ("last", 2)):
        (run / "checkpoints" / name).symlink_to(f"step-0000000{step}")
    return request.param, model, run


@pytest.fixture
def saved(original, tmp_path):
    """Like `original`, but with a copy of the run folder that the test may change."""
    model_class, model, run = original
    return model_class, model, shutil.copytree(run, tmp_path / "run", symlinks=True)


def test_every_model_is_loaded_from_a_run_folder(saved):
    model_class, model, run = saved
    expected = model.state_dict()
    for load in (model_class.from_pretrained, atk.models.from_pretrained):
        for name in (run, str(run), run / "checkpoints" / "best"):
            got = load(name)
            assert type(got) is model_class and not got.training
            assert all(torch.equal(value, expected[key]) for key, value in got.state_dict().items())
    assert model_class.saved_config(run) == model.config
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no checkpoint: expected .*last, written by atk train"):
        model_class.from_pretrained(run)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("model.safetensors", lambda data: data[:-1], r"damaged or cut short \("),
        ("model.safetensors", lambda data: b"", r"damaged or cut short \("),
        ("config.json", lambda data: data[:-5], r"damaged or cut short \("),
        ("config.json", lambda data: b"\xff\xfe", r"damaged or cut short \("),
        ("config.json", lambda data: b"[1, 2]", "not the configuration of a model"),
    ],
)
def test_a_damaged_file_is_named(saved, name, change, reason):
    model_class, _, run = saved
    path = run / "checkpoints" / "step-00000001" / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"{name}: {reason}"):
        model_class.from_pretrained(run)


def test_weights_of_another_model_are_named(saved):
    model_class, _, run = saved
    other = next(make for model, make in MODELS.items() if model is not model_class)()
    other.save_pretrained(run / "other")
    shutil.copy(run / "other" / "model.safetensors", run / "checkpoints" / "step-00000001")
    with pytest.raises(ValueError, match=r"model\.safetensors: not the weights of the model in config\.json \("):
        model_class.from_pretrained(run)
