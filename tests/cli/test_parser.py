"""The command line: spelling of options, choices in help and errors, `--version`."""

import dataclasses
import os
import typing

import pytest
import torch

from atk.cli.commands import parse
from atk.cli.main import main
from atk.cli.parser import with_underscores
from atk.data import CONDITIONS, MixConfig
from atk.data.captions import ON_ERROR
from atk.device import MAX_WORKERS, default_workers
from atk.distributed import GATHERS
from atk.models.captioner import CaptionerConfig
from atk.models.text import TextEncoderConfig
from atk.nn.losses import PAIR_LOSSES
from atk.ops.backend import BACKENDS
from atk.ops.info_nce import REDUCTIONS
from atk.ops.max_mean import DIRECTIONS
from atk.plan.command import Method
from atk.soundscapes import PRESETS
from atk.train.aligned import AlignedConfig, LossConfig
from atk.train.config import OptimConfig, TrainConfig
from atk.train.difference import DifferenceConfig
from atk.train.semisupervised_config import MapperConfig, SemiSupervisedConfig, SemiSupervisedLossConfig

RUN = ["train", "aligned", "--data", "D", "--out", "O"]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["--batch-size", "64"], ["--batch_size", "64"]),
        (["--batch-size=64"], ["--batch_size=64"]),
        (["--optim.weight-decay=0.1"], ["--optim.weight_decay=0.1"]),
        (["--batch_size", "64"], ["--batch_size", "64"]),
        (["--out=my-run--1"], ["--out=my-run--1"]),
        (["--prompt", "--a-b c"], ["--prompt", "--a-b c"]),
        (["align", "run-1", "a-b_c.wav", "a-b"], ["align", "run-1", "a-b_c.wav", "a-b"]),
        (["search", "run", "folder", "--", "--a-b"], ["search", "run", "folder", "--", "--a-b"]),
        (["-x-y"], ["-x-y"]),
    ],
)
def test_only_option_names_are_respelled(typed, expected):
    assert with_underscores(typed) == expected


@pytest.mark.parametrize(
    ("typed", "texts"),
    [
        (["--moments", "a dog", "--threshold", "-0.3", "rain"], ["a dog", "rain"]),
        (["--top=3", "a dog", "--smooth", "0.1", "--json", "--", "--a-b"], ["a dog", "--a-b"]),
    ],
)
def test_texts_may_stand_behind_options(typed, texts):
    _, _, arguments = parse(["search", "run", "folder", *typed])
    assert (arguments.run, arguments.folder, arguments.query) == ("run", "folder", texts)
    _, _, arguments = parse(["align", "run", "a.wav", "metal", "--out", "a.png", "guitar"])
    assert (arguments.text, arguments.out) == (["metal", "guitar"], "a.png")


def test_hyphens_and_underscores_give_the_same_configuration():
    flags = ("batch_size", "8"), ("optim.weight_decay", "0.5"), ("model.text.max_tokens", "20")
    _, _, underscores = parse([*RUN, *(word for name, value in flags for word in (f"--{name}", value))])
    _, _, hyphens = parse([*RUN, *(f"--{name.replace('_', '-')}={value}" for name, value in flags)])
    assert hyphens.aligned.as_dict() == underscores.aligned.as_dict()
    assert hyphens.aligned.optim.weight_decay == 0.5


@pytest.mark.parametrize("command", ["train aligned", "train difference", "train semisupervised", "evaluate", "plan"])
def test_help_shows_hyphens_and_choices_and_no_equations(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "--on-error {skip,raise}" in text and "--batch-size" in text
    assert "--on_error" not in text and "--batch_size" not in text
    assert "thesis" not in text and "(3." not in text and "Literal" not in text


@pytest.mark.parametrize(
    ("config", "field", "choices"),
    [
        (AlignedConfig, "backend", ("auto", *BACKENDS["max_mean_similarity"])),
        (SemiSupervisedConfig, "backend", ("auto", *BACKENDS["info_nce"])),
        (DifferenceConfig, "backend", ("auto", *BACKENDS["cross_attention_difference"])),
        (AlignedConfig, "gather", GATHERS),
        (TrainConfig, "precision", ("auto", "fp32", "bf16")),
        (TrainConfig, "on_error", ON_ERROR),
        (OptimConfig, "name", ("adam", "schedulefree")),
        (LossConfig, "kind", (*PAIR_LOSSES, "triplet")),
        (LossConfig, "reduction", REDUCTIONS),
        (LossConfig, "direction", DIRECTIONS),
        (SemiSupervisedLossConfig, "reduction", REDUCTIONS),
        (MapperConfig, "kind", ("mlp", "transformer")),
        (DifferenceConfig, "objective", ("mask", "subtraction", "plain", "pairmix")),
        (MixConfig, "condition", CONDITIONS),
        (CaptionerConfig, "difference", ("mask", "subtraction", "none")),
        (TextEncoderConfig, "pooling", ("cls", "mean", "last", "pooler")),
    ],
)
def test_choices_of_a_field_are_its_literals(config, field, choices):
    literal = typing.get_type_hints(config)[field]
    assert typing.get_origin(literal) is typing.Literal and set(typing.get_args(literal)) == set(choices)
    required = {field.name: "x" for field in dataclasses.fields(config) if field.name in ("data", "out")}
    if field != "backend":  # checked by `atk.ops.backend.choose` when training starts
        with pytest.raises(ValueError, match=f"{field} must be one of"):
            config(**required, **{field: "wrong"})


def test_methods_and_presets_are_literals(capsys):
    assert typing.get_args(Method) == ("aligned", "difference", "semisupervised", "unified")
    with pytest.raises(SystemExit):
        main(["soundscapes", "--help"])
    assert f"--preset {{{','.join(PRESETS)}}}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (
            [*RUN, "--optim.name", "sgd"],
            "atk train aligned: --optim.name must be one of 'adam', 'schedulefree', got 'sgd'",
        ),
        ([*RUN, "--on-error=stop"], "atk train aligned: --on-error must be one of 'skip', 'raise', got 'stop'"),
        ([*RUN, "--backend", "cuda"], "must be one of 'auto', 'triton', 'cpp', 'chunked', 'reference', got 'cuda'"),
        ([*RUN, "--batch-size", "x"], "atk train aligned: --batch-size must be of type int, got 'x'"),
        ([*RUN, "--workers", "x"], "atk train aligned: --workers must be of type int or null, got 'x'"),
        (
            [*RUN, "--model.audio.frame-layer", "2.5"],
            "--model.audio.frame-layer must be of type int, or 'auto', got '2.5'",
        ),
        ([*RUN, "--bacth-size", "3"], "atk train aligned: unrecognized arguments: --bacth-size 3"),
        ([*RUN, "--optim", "3"], "atk train aligned: --optim: Unable to load config '3'"),
        ([*RUN, "--config", "/no/such.yaml"], "atk: /no/such.yaml: No such file or directory"),
        (["train", "alinged"], "atk train: method must be one of 'aligned', 'difference', 'semisupervised'"),
        (["train"], "atk train: choose one of aligned, difference, semisupervised"),
        (["train", "aligned"], "atk train aligned: missing arguments: --data, --out"),
        (
            ["evaluate", "R", "--data", "D", "--on-error", "stop"],
            "--on-error must be one of 'skip', 'raise', got 'stop'",
        ),
        (["evaluate", "R", "--data", "D", "--condition", "x"], "--condition must be one of 'same/same', 'same/diff', "),
        (
            ["evaluate", "R", "--data", "D", "--protocol", "tagging", "er"],
            "--protocol must be one of 'retrieval', 'zero-shot', 'tagging', 'multi-query', 'moments', 'psds', got 'er'",
        ),
        (["evaluate", "R", "--data", "D", "--prompts", "mine"], "--prompts must be one of 'laion', 'msclap', "),
        (["search", "R", "D"], "atk search: missing arguments: query"),
        (
            ["plan", "--method", "x"],
            "atk plan: --method must be one of 'aligned', 'difference', 'semisupervised', 'unified', got 'x'",
        ),
        (["kernels", "--dtype", "x"], "--dtype must be one of 'bfloat16', 'float16', 'float32', got 'x'"),
        ([], "atk: choose one of train, evaluate, "),
    ],
)
def test_mistakes_name_the_flag_and_the_choices_in_one_line(argv, error, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    line = capsys.readouterr().err
    assert stop.value.code == 2 and error in line and line.count("\n") == 1


def test_a_wrong_choice_in_a_file_ends_with_one_line(tmp_path, capsys):
    (tmp_path / "wrong.yaml").write_text("optim:\n  name: sgd\n")
    with pytest.raises(SystemExit) as stop:
        main([*RUN, "--config", str(tmp_path / "wrong.yaml")])
    line = capsys.readouterr().err
    assert stop.value.code == 2 and "'adam', 'schedulefree'" in line and "sgd" in line and line.count("\n") == 1


@pytest.mark.parametrize(("text", "name"), [("loss:\n  past: false\n", "loss.past"), ("batchsize: 4\n", "batchsize")])
def test_an_unknown_setting_in_a_file_is_named(text, name, tmp_path, capsys):
    (tmp_path / "old.yaml").write_text(text)
    with pytest.raises(SystemExit) as stop:
        main([*RUN, "--config", str(tmp_path / "old.yaml")])
    expected = f"atk: {tmp_path}/old.yaml: '{name}' is no setting of atk train aligned; remove or correct it\n"
    assert stop.value.code == 2 and capsys.readouterr().err == expected


def test_a_saved_configuration_may_hold_a_number_of_workers(tmp_path):
    (tmp_path / "config.yaml").write_text("workers: 1\n")
    assert parse([*RUN, "--config", str(tmp_path / "config.yaml")])[2].aligned.workers == 1
    assert parse(RUN)[2].aligned.workers is None


def test_default_workers_suit_the_machine(monkeypatch):
    assert default_workers(torch.device("cpu")) == 1
    assert 1 <= default_workers(torch.device("cuda")) <= MAX_WORKERS
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(cores))
    assert default_workers(torch.device("cuda")) == 1


def test_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out == "atk 0.1.0\n"
