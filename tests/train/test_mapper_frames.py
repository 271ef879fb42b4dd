"""The frames that the Transformer mapper attends to: those of the audio encoder, or those in the shared space."""

import pytest
import torch
import yaml
from support.runs import rows, semisupervised_arguments, semisupervised_config, semisupervised_task, training_state

from atk.cli.main import main
from atk.train.semisupervised_config import MapperConfig

WIDTH, DIM = 32, 16  # of the audio encoder, and of the shared space, in the tiny runs


def test_the_mapper_attends_to_the_frames_of_the_encoder(tiny_data, noises, tmp_path):
    task = semisupervised_task(tiny_data, noises, tmp_path, mapper__frames="encoder", mapper__noise=0.0)
    assert task.criterion.mapper.project.in_features == WIDTH
    task.model.eval()
    task.criterion.eval()
    batch = next(iter(task.batches(0)))
    unlabeled = batch.unlabeled
    _, frames, mask = task.model.audio_encoder(unlabeled.audio, unlabeled.lengths)
    pseudo = task.criterion.mapper(frames, mask)
    prompts = task.model.tokenize(["A sound of"] * len(unlabeled))
    expected = task.model.encode_text(prompts, pseudo).pooled
    torch.testing.assert_close(task.encode(batch)["unlabeled text"], expected)
    projected = semisupervised_task(tiny_data, noises, tmp_path, mapper__frames="projected")
    assert projected.criterion.mapper.project.in_features == DIM


def saved_frames(out):
    return yaml.safe_load((out / "config.yaml").read_text())["mapper"]["frames"]


@pytest.mark.slow
def test_new_runs_take_those_of_the_encoder_and_earlier_runs_stay_as_they_are(tiny_data, noises, tmp_path):
    new, earlier = tmp_path / "new", tmp_path / "earlier"
    main(semisupervised_arguments(tiny_data, noises, new, "--steps", "1", "--save-every", "1"))
    assert saved_frames(new) == "encoder"
    assert training_state(new)["criterion"]["mapper.project.weight"].shape[1] == WIDTH
    main(["train", "semisupervised", "--out", str(new), "--resume", "--steps", "2"])
    assert saved_frames(new) == "encoder" and rows(new)[-1]["step"] == 2
    options = ["--steps", "1", "--save-every", "1", "--mapper.frames", "projected"]
    main(semisupervised_arguments(tiny_data, noises, earlier, *options))
    settings = yaml.safe_load((earlier / "config.yaml").read_text())
    del settings["mapper"]["frames"]  # as earlier versions wrote it
    (earlier / "config.yaml").write_text(yaml.safe_dump(settings))
    main(["train", "semisupervised", "--out", str(earlier), "--resume", "--steps", "2"])
    assert saved_frames(earlier) == "projected" and rows(earlier)[-1]["step"] == 2
    assert training_state(earlier)["criterion"]["mapper.project.weight"].shape[1] == DIM


def test_the_hidden_layer_of_the_mlp_is_a_setting(tiny_data, noises, tmp_path):
    for hidden in (512, 1024):
        config = semisupervised_config(tiny_data, noises, tmp_path, mapper__kind="mlp", mapper__hidden=hidden)
        assert config.mapper.hidden == hidden
    task = semisupervised_task(tiny_data, noises, tmp_path, mapper__kind="mlp", mapper__hidden=24)
    assert task.criterion.mapper.layers[0].weight.shape == (24, DIM)
    with pytest.raises(ValueError, match="frames must be one of"):
        MapperConfig(frames="pooled")
