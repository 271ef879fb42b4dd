"""Fine-tuning: what is trained, at which learning rate, from which step; averages, masks, adapters, early stopping."""

import json

import pytest
import torch
from safetensors.torch import load_file
from support.runs import arguments, parsed_config, rows, training_state, weights
from support.tiny_captioner import tiny as tiny_captioner
from support.tiny_clap import tiny_clap

from atk.cli.main import main
from atk.train.aligned import AlignedConfig, AlignedTask
from atk.train.config import OptimConfig, TrainConfig
from atk.train.lora import merged
from atk.train.trainer import Trainer
from atk.train.tune_config import LoraConfig, TuneConfig
from atk.train.tuning import prepare, train_mode

CPU = torch.device("cpu")

LAYERS = ("--model.audio.layers", "2", "--model.text.layers", "2")
COMBINED = [
    (
        *(
            "--tune.freeze",
            "[text_encoder.*word_embeddings*]",
            "--tune.freeze-audio",
            "2",
            "--tune.unfreeze-every",
            "3",
        ),
        *("--optim.layer-decay", "0.5", "--optim.weight-decay", "0.1", "--ema", "0.9"),
        *("--spec-augment.time-masks", "2", "--spec-augment.mel-masks", "1"),
    ),
    ("--optim.name", "schedulefree", "--optim.audio-lr", "1e-4", "--optim.text-lr", "1e-3"),
    ("--tune.lora.rank", "2", "--tune.lora.dropout", "0.1", "--ema", "0.9", *LAYERS),
]


def config(**options):
    return TrainConfig(data="data", out="out", **options)


def pace_of(paces, part):
    """The one pace of the weights whose name contains `part`."""
    (pace,) = {pace for name, pace in paces.items() if part in name}
    return pace


@pytest.mark.slow
@pytest.mark.parametrize("options", COMBINED, ids=["freezing, averages, masks", "learning rates", "adapters"])
def test_a_stopped_run_resumes_to_the_same_bits(tiny_data, tmp_path, options):
    main(arguments(tiny_data, tmp_path / "whole", *options))
    # A run of 7 steps that knows that 12 are planned is one that was killed after step 7.
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "done", property(lambda self: self.step >= 7))
        main(arguments(tiny_data, run, *options))
    main(["train", "aligned", "--out", str(run), "--resume"])
    ours, expected = weights(run), weights(tmp_path / "whole")
    assert ours.keys() == expected.keys() and not [key for key in ours if "lora" in key or "base" in key]
    assert all(torch.equal(ours[key], expected[key]) for key in ours)
    losses = [[row["loss"] for row in rows(out) if "loss" in row] for out in (run, tmp_path / "whole")]
    assert losses[0] == losses[1] and len(losses[0]) == 12


def test_frozen_weights_keep_their_bits_and_are_not_in_the_optimizer(tiny_run, tiny_data, tmp_path):
    options = ("--tune.freeze", "[text_encoder.*]", "--tune.freeze-audio", "4", "--init", str(tiny_run))
    main(arguments(tiny_data, tmp_path / "run", *options, "--steps", "3"))
    before = load_file(tiny_run / "checkpoints" / "best" / "model.safetensors")
    after = weights(tmp_path / "run")
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    kept = {name for name in after if name.startswith(("text_encoder.", "audio_encoder.convs", "audio_encoder.cls"))}
    assert not changed & kept and kept
    assert changed == set(after) - kept - {"audio_encoder.project.weight", "audio_encoder.project.bias"}
    # One state for every weight that is trained: the changed ones and the temperature.
    assert len(training_state(tmp_path / "run")["optimizer"]["state"]) == len(changed) + 1


def test_frozen_modules_are_in_evaluation_mode():
    model = tiny_clap()
    prepare(model, config(tune=TuneConfig(freeze=["text_encoder.*"])), resume=False)
    train_mode(model)
    assert not model.text_encoder.training and model.audio_encoder.training and model.text_projection.training
    assert not any(module.training for module in model.text_encoder.modules() if list(module.parameters()))


def test_learning_rates_fall_from_the_output_to_the_input_of_each_tower():
    optim = OptimConfig(lr=1e-3, audio_lr=1e-4, layer_decay=0.5)
    paces = prepare(tiny_clap(), config(optim=optim, tune=TuneConfig(unfreeze_every=10)), resume=False)
    # The audio encoder has four convolutions and one Transformer layer; the text encoder has one layer.
    expected = {
        "audio_projection": (1, 0),
        "audio_encoder.transformer.norm": (0.1, 0),
        "audio_encoder.transformer.layers.0": (0.05, 10),
        "audio_encoder.convs.3": (0.025, 20),
        "audio_encoder.convs.0": (0.1 / 32, 50),
        "audio_encoder.cls": (0.1 / 64, 60),
        "text_projection": (1, 0),
        "text_encoder.model.encoder.layer.0": (0.5, 10),
        "word_embeddings": (0.25, 20),
    }
    for part, (factor, first_step) in expected.items():
        pace = pace_of(paces, part)
        assert (pace.lr_factor, pace.first_step) == (pytest.approx(factor), first_step), part


@pytest.mark.slow
def test_layers_join_from_the_output_down(tiny_data, tmp_path):
    options = ("--tune.unfreeze-every", "2", "--eval-every", "0")
    changed = []
    for steps in ("2", "3", "12"):
        main(arguments(tiny_data, tmp_path / steps, *options, "--steps", steps))
        changed.append(_trained_layers(tmp_path / steps))
    assert changed[0] == set()
    assert changed[1] == {"audio_encoder.transformer.layers.0", "text_encoder.model.encoder.layer.0"}
    assert {"audio_encoder.convs.3", "audio_encoder.convs.0"} <= changed[2]


def _trained_layers(out):
    """Names of the layers that the optimizer has a state of."""
    names = trained_names(out)
    stepped = {names[index] for index in training_state(out)["optimizer"]["state"] if index < len(names)}
    parts = ("transformer.layers.", "encoder.layer.", "convs.")
    return {name[: name.index(part) + len(part) + 1] for name in stepped for part in parts if part in name}


def trained_names(out):
    """Names of the weights of the model of a run that trains all of them."""
    values = parsed_config(("train", "aligned", "--config", str(out / "config.yaml")))
    task = AlignedTask(AlignedConfig(**{name: values[name] for name in AlignedConfig.__dataclass_fields__}), CPU)
    return [name for name, _ in task.model.named_parameters()]


def test_the_average_is_what_is_saved(tiny_data, tmp_path):
    main(arguments(tiny_data, tmp_path / "run", "--ema", "0.5", "--steps", "3", "--save-every", "1"))
    state = training_state(tmp_path / "run")
    saved = weights(tmp_path / "run")
    name = "audio_projection.weight"
    index = trained_names(tmp_path / "run").index(name)
    assert torch.equal(saved[name], state["average"][index])
    assert not torch.equal(saved[name], state["trained"][index])


def test_adapters_change_only_the_linear_layers_they_are_in(tiny_run, tiny_data, tmp_path):
    pytest.importorskip("peft")
    run = tmp_path / "run"
    options = ("--init", str(tiny_run), "--tune.lora.rank", "2", "--tune.lora.targets", "[text_encoder.*query]")
    main(arguments(tiny_data, run, *options, "--steps", "3"))
    before = load_file(run / "base.safetensors")
    after = weights(run)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    queries = {name for name in after if name.endswith("query.weight")}
    assert changed == queries | {
        f"{side}_projection.{name}" for side in ("audio", "text") for name in ("weight", "bias")
    }
    for name in queries:
        assert torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3) <= 2


def test_adapters_are_evaluated(tiny_data, tmp_path):
    """PyTorch's Transformer layers read the weights of their linear layers directly in evaluation mode."""
    pytest.importorskip("peft")
    model = tiny_clap()
    settings = TuneConfig(lora=LoraConfig(rank=2, targets=["audio_encoder.*"]))
    prepare(model, TrainConfig(data="data", out=str(tmp_path), tune=settings), resume=False)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    clips = torch.randn(2, 8000), torch.tensor([8000, 8000])
    with torch.enable_grad():
        expected = model.embed_audio(*clips).pooled
    with torch.no_grad():
        torch.testing.assert_close(
            merged(model).eval().embed_audio(*clips).pooled, expected.detach(), atol=1e-5, rtol=0
        )
    assert (expected - tiny_clap().embed_audio(*clips).pooled).abs().max() > 1e-3


def test_adapters_of_a_captioner_leave_tied_weights_alone(tmp_path):
    pytest.importorskip("peft")
    model = tiny_captioner().eval()
    settings = TuneConfig(lora=LoraConfig(rank=2))
    paces = prepare(model, TrainConfig(data="data", out=str(tmp_path), tune=settings), resume=False)
    assert any("decoder" in name and "lora" in name for name in paces) and not any("lm_head" in name for name in paces)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    clips = torch.randn(2, 16000), torch.tensor([16000, 16000])
    tokens = model.tokenize(["a dog barks", "rain falls"])
    torch.testing.assert_close(merged(model)(*clips, tokens), model(*clips, tokens), rtol=1e-5, atol=1e-5)


def test_patience_ends_the_run_and_resuming_does_not_go_on(tiny_data, tmp_path, monkeypatch):
    metrics = iter([1.0, 2.0, 2.0, 1.0, 5.0])
    monkeypatch.setattr(AlignedTask, "validate", lambda self: {"mAP@10": next(metrics)})
    main(arguments(tiny_data, tmp_path / "run", "--eval-every", "1", "--patience", "2", "--save-every", "100"))
    main(["train", "aligned", "--out", str(tmp_path / "run"), "--resume"])
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 4
    assert (tmp_path / "run" / "checkpoints" / "best").readlink().name == "step-00000002"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tune": TuneConfig(freeze=["text_encoder.typo*"])}, r"tune.freeze: no weight of the model matches 'text_enc"),
        ({"tune": TuneConfig(freeze_audio=6)}, "tune.freeze_audio: audio_encoder has 5 layers, got 6"),
        (
            {"tune": TuneConfig(freeze=["*_projection.*", "*norm*"], unfreeze_every=2)},
            "nothing trains in the first steps",
        ),
        (
            {"tune": TuneConfig(lora=LoraConfig(rank=1, targets=["query"]))},
            r"tune.lora.targets: no linear layer .*query",
        ),
        ({"tune": TuneConfig(freeze=["*"])}, "tune: every weight of the model is frozen; nothing is left to train"),
    ],
)
def test_mistakes_cost_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        prepare(tiny_clap(), config(**options), resume=False)
