"""The recipes against the settings that the thesis states, the registry of tables, and the arithmetic of the tables."""

import json
import math
import shlex
import statistics
from dataclasses import asdict
from pathlib import Path

import pytest
from support.runs import parsed_config

import atk.recipes
from atk.recipes import TABLES, Recipe
from atk.recipes.command import _run_all
from atk.recipes.jobs import Job, Machine, jobs
from atk.recipes.measure import Measured, measured
from atk.recipes.recipe import METHODS
from atk.recipes.report import record, render, summarize
from atk.recipes.sources import DATA, HUB, WEIGHTS, check_weights, missing, parse_sources

ROWS = [(name, row) for name, table in TABLES.items() for row in table.rows]
TRAINED = sorted({row.recipe for _, row in ROWS if Recipe.read(row.recipe).method})
SOURCES = {name: f"/{name}" for name in (*DATA, *WEIGHTS)}

CHAPTER_3 = {  # thesis 3.5.3
    "optim.name": "adam", "optim.lr": 5e-5, "batch_size": 64, "epochs": 50, "clip_seconds": 9.91, "model.dim": 128,
    "model.audio.sample_rate": 16000, "model.audio.mel_bins": 128, "model.audio.layers": 4,
    "model.audio.type": "music-tagging-transformer", "loss.global_weight": 1.0,
}  # fmt: skip
CHAPTER_4 = {  # thesis 4.5.1; (4.6) has no levels
    "optim.name": "adam", "optim.lr": 1e-4, "batch_size": 32, "epochs": 50, "model.audio.mel_bins": 64,
    "mix.references": "/esc50", "mix.snr_db": None, "model.audio.pretrained": "/cnn14", "data": "/clotho",
}  # fmt: skip
CHAPTER_5 = {  # thesis 5.5.2, 5.4.2, (5.13)
    "optim.name": "schedulefree", "batch_size": 256, "epochs": 30, "prompt": "A sound of", "mapper.layers": 2,
    "mapper.heads": 8, "mapper.dropout": 0.1, "mapper.hidden": 1024, "model.msclap.weights": "/msclap",
    "loss.labeled_weight": 1.0,
}  # fmt: skip
INFO_NCE = {"loss.kind": "info_nce", "loss.temperature": 0.2, "model.text.pretrained": "bert-base-uncased"}
TRIPLET = {"loss.kind": "triplet", "loss.margin": 0.4, "loss.aligned_weight": 0.0}
MLP = {"mapper.kind": "mlp", "mapper.noise": 1.0, "loss.mix_weight": 1.0, "loss.unlabeled_weight": 1.0}
TRANSFORMER = MLP | {"mapper.kind": "transformer", "mapper.frames": "encoder", "mapper.tokens": 2}
SUPERVISED = {"loss.mix_weight": 0.0, "loss.unlabeled_weight": 0.0, "unlabeled": []}
STATED = {
    "table_3_1/triplet_glove": TRIPLET | {"model.text.vectors": "/glove", "model.text.pretrained": None},
    "table_3_1/triplet_bert": TRIPLET | {"model.text.pretrained": "bert-base-uncased"},
    "table_3_1/info_nce": INFO_NCE | {"loss.aligned_weight": 0.0, "tag_sampling": "shuffle"},
    "table_3_1/stochastic": INFO_NCE | {"loss.aligned_weight": 0.0, "tag_sampling": "stochastic"},
    "table_3_1/baseline": INFO_NCE | {"loss.aligned_weight": 0.0, "loss.learnable": False},
    "table_3_1/aligned": INFO_NCE | {"loss.aligned_weight": 1.0, "loss.direction": "audio", "loss.learnable": False},
    "table_4_1/baseline": {"objective": "plain", "model.difference": "none"},
    "table_4_1/al_mixgen": {"objective": "pairmix"},
    "table_4_1/subtraction": {"objective": "subtraction", "mix.condition": "same/same", "mix.rate": 1.0},
    "table_4_1/mask": {"objective": "mask", "mix.condition": "same/same", "mix.rate": 1.0},
    "table_4_2/mask_same_diff": {"objective": "mask", "mix.condition": "same/diff"},
    "table_4_2/mask_diff_diff": {"objective": "mask", "mix.condition": "diff/diff"},
    "table_4_2/mask_multi_same": {"objective": "mask", "mix.condition": "multi/same"},
    "table_4_2/mask_multi_diff": {"objective": "mask", "mix.condition": "multi/diff"},
    "table_5_1/finetuned": SUPERVISED | {"data": "/audiocaps"},
    "table_5_1/finetuned_both": SUPERVISED | {"data": ["/audiocaps", "/clotho"], "mixgen": 0.0},
    "table_5_1/mlp_clotho": MLP | {"data": "/audiocaps", "unlabeled": ["/clotho_audio"]},
    "table_5_1/mlp_audioset": MLP | {"data": "/audiocaps", "unlabeled": ["/audioset"]},
    "table_5_1/transformer_clotho": TRANSFORMER | {"data": "/audiocaps", "unlabeled": ["/clotho_audio"]},
    "table_5_1/transformer_audioset": TRANSFORMER | {"data": "/audiocaps", "unlabeled": ["/audioset"]},
    "table_5_1/al_mixgen": SUPERVISED | {"data": ["/audiocaps", "/clotho"], "mixgen": 0.5},
    "table_5_2/finetuned": SUPERVISED | {"data": "/clotho"},
    "table_5_2/finetuned_both": SUPERVISED | {"data": ["/clotho", "/audiocaps"], "mixgen": 0.0},
    "table_5_2/mlp_audiocaps": MLP | {"data": "/clotho", "unlabeled": ["/audiocaps_audio"]},
    "table_5_2/mlp_audioset": MLP | {"data": "/clotho", "unlabeled": ["/audioset"]},
    "table_5_2/transformer_audiocaps": TRANSFORMER | {"data": "/clotho", "unlabeled": ["/audiocaps_audio"]},
    "table_5_2/transformer_audioset": TRANSFORMER | {"data": "/clotho", "unlabeled": ["/audioset"]},
    "table_5_2/al_mixgen": SUPERVISED | {"data": ["/clotho", "/audiocaps"], "mixgen": 0.5},
    "table_5_3/transformer_1_audiocaps": TRANSFORMER | {"data": "/audiocaps", "mapper.tokens": 1},
    "table_5_3/transformer_4_audiocaps": TRANSFORMER | {"data": "/audiocaps", "mapper.tokens": 4},
    "table_5_3/transformer_1_clotho": TRANSFORMER | {"data": "/clotho", "mapper.tokens": 1},
    "table_5_3/transformer_4_clotho": TRANSFORMER | {"data": "/clotho", "mapper.tokens": 4},
    "table_5_4/no_noise_audiocaps": MLP | {"data": "/audiocaps", "mapper.noise": 0.0},
    "table_5_4/no_noise_clotho": MLP | {"data": "/clotho", "mapper.noise": 0.0},
    "table_5_4/no_unlabeled_loss_audiocaps": MLP | {"data": "/audiocaps", "loss.unlabeled_weight": 0.0},
    "table_5_4/no_unlabeled_loss_clotho": MLP | {"data": "/clotho", "loss.unlabeled_weight": 0.0},
}


def first_of_each_table_is_quick(recipes):
    first = {recipe.partition("/")[0]: recipe for recipe in reversed(recipes)}.values()
    return [recipe if recipe in first else pytest.param(recipe, marks=pytest.mark.slow) for recipe in recipes]


@pytest.mark.parametrize("recipe", first_of_each_table_is_quick(TRAINED))
def test_recipes_have_the_settings_of_the_thesis(recipe):
    config = asdict(Recipe.read(recipe).config(SOURCES | HUB, out="-", seed=7))
    chapter = {"3": CHAPTER_3, "4": CHAPTER_4, "5": CHAPTER_5}[recipe[len("table_")]]
    for name, wanted in (chapter | STATED[recipe] | {"seed": 7}).items():
        value = config
        for part in name.split("."):
            value = value[part]
        assert value == wanted, f"{recipe}: {name}"


PAGE = Path(__file__).parents[2] / "docs" / "thesis.md"
COMMANDS = {  # the --out of a command in the page, by chapter, and the recipe whose settings it has
    3: {
        "RUN": "table_3_1/aligned", "BASELINE": "table_3_1/baseline", "INFO_NCE": "table_3_1/info_nce",
        "TRIPLET_BERT": "table_3_1/triplet_bert", "TRIPLET_GLOVE": "table_3_1/triplet_glove",
    },
    4: {"RUN": "table_4_1/mask"},
    5: {"RUN": "table_5_1/transformer_audioset"},
}  # fmt: skip
OTHER = {"data", "out", "unlabeled", "references", "vectors", "weights", "eval_every", "save_every"}


def differences(page, recipe, name=""):
    """Settings that a command of the page states and that differ; null stands for a value chosen at the start."""
    if isinstance(page, dict):
        return [text for key in page if key not in OTHER for text in differences(page[key], recipe[key], key)]
    return [] if page is None or page == recipe else [f"{name}: {page}, recipe {recipe}"]


@pytest.mark.parametrize("chapter", COMMANDS)
def test_the_commands_of_the_page_have_the_settings_of_the_recipes(chapter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    section = PAGE.read_text().split(f"## Chapter {chapter}")[1].split("## Chapter")[0].replace("\\\n", " ")
    commands = [shlex.split(line)[1:] for line in section.splitlines() if line.startswith("atk train")]
    paths = SOURCES | HUB | {"cnn14": "Cnn14_mAP=0.431.pth"}
    configs = {}
    for command in commands:
        make, values = METHODS[command[1]].config, parsed_config(command)
        config = make(**{name: values[name] for name in make.__dataclass_fields__})
        if config.out not in configs:  # a later command with the same --out is a variant
            Path(config.out).mkdir()
            config.save(Path(config.out) / "config.yaml")
            configs[config.out] = asdict(config)
    assert configs.keys() == COMMANDS[chapter].keys()
    for out, name in COMMANDS[chapter].items():
        recipe = asdict(Recipe.read(name).config(paths, out="-", seed=0))
        wrong = [text for text in differences(configs[out], recipe) if not text.startswith("hidden:")]  # "mlp" only
        assert not wrong, f"{out}, {name}: {wrong}"


def test_every_recipe_belongs_to_a_row_and_every_value_says_where_it_comes_from():
    folder = Path(atk.recipes.__file__).parent
    files = {str(path.relative_to(folder).with_suffix("")) for path in folder.glob("table_*/*.yaml")}
    assert files - {name for name in files if name.endswith("/base")} == {row.recipe for _, row in ROWS}
    assert set(TRAINED) == set(STATED)
    for path in folder.glob("table_*/*.yaml"):
        for line in path.read_text().splitlines():
            group = line.rstrip().endswith(":") or line.startswith(("#", "extends:", "method:"))
            assert group or "#" in line or line.strip() in _EXPLAINED, f"{path.name}: {line} has no source"


_EXPLAINED = {  # by the line above
    "learnable: null", "unlabeled_weight: 0.0", "unlabeled: []", "pretrained: null",
}  # fmt: skip


@pytest.mark.parametrize(("name", "row"), ROWS, ids=lambda value: getattr(value, "name", value))
def test_rows_name_known_sources_and_have_a_figure_for_each_column(name, row):
    recipe = Recipe.read(row.recipe)
    assert {*recipe.sources, row.target} <= SOURCES.keys()
    assert len(row.figures) == len(TABLES[name].columns)
    assert Recipe.read(row.recipe, small=True).method == recipe.method
    if recipe.method is None:
        assert recipe.checkpoint in ("{msclap}", "{laion}", "{tclap}")


def test_figures_of_rows_that_occur_twice_agree_except_for_subtraction():
    seen = {}
    for name, row in ROWS:
        if row.figures and row.recipe.startswith("table_5") and Recipe.read(row.recipe).method:
            assert seen.setdefault(row.recipe, row.figures) == row.figures, name
    sub = [table.row("subtraction").figures[-1] for table in (TABLES["4.1"], TABLES["4.2"])]
    assert sub == [0.264, 0.262]
    assert TABLES["5.4"].row("no-noise-clotho").figures[-1] == 30.27  # stands under AudioCaps in the thesis


def test_a_seed_is_the_only_difference_between_the_runs_of_a_row():
    recipe = Recipe.read("table_5_1/mlp_audioset")
    first, second = (asdict(recipe.config(SOURCES, out="-", seed=seed)) for seed in (0, 1))
    assert {name for name in first if first[name] != second[name]} == {"seed"}


def test_intervals_are_those_of_students_t():
    values = [1.0, 2.0, 4.0]
    result = summarize(values, 2.0)
    half = 4.302653 * statistics.stdev(values) / math.sqrt(3)
    assert result["interval"] == pytest.approx(half, rel=1e-6)
    assert result["difference"] == pytest.approx(1 / 3)
    assert summarize([1.0], None) == {"mean": 1.0, "interval": None, "thesis": None, "difference": None}


def test_pages_name_missing_metrics_and_rows_that_need_something():
    table = TABLES["4.1"]
    scores = {name: 0.5 for name in table.columns if name != "METEOR"}
    values = measured(table, {"input": scores, "missing": {"METEOR": "java is not on the PATH"}})
    assert values == Measured(scores, {"METEOR": "java is not on the PATH"})

    class Run:
        seed, folder, result = 0, "runs/mask", "runs/mask/evaluation.json"

    content = record("4.1", table, table.rows, {"mask": [(Run, values)]}, {"baseline": "--data esc50=PATH"}, "full")
    page = render(content)
    assert "| | here, 1 seed | 0.500 | 0.500 | 0.500 | 0.500 | - | 0.500 |" in page
    assert "| | difference | -0.106 |" in page and "- METEOR: java is not on the PATH" in page
    assert "- Baseline: needs --data esc50=PATH" in page


@pytest.mark.parametrize(("split", "said"), [("test", ""), ("val", "/clotho has no test split; evaluated on val\n")])
def test_captions_of_val_in_place_of_test_are_said(tmp_path, capsys, split, said):
    table = TABLES["4.2"]
    (job,) = jobs(table, table.rows[:1], [0], tmp_path, SOURCES, small=False)
    job.folder.mkdir(parents=True)
    (job.folder / "summary.json").write_text(json.dumps({"split": split}))
    job.result.write_text(json.dumps({"input": {}, "missing": {}}))
    _run_all([job], table, Machine())
    assert capsys.readouterr().err.endswith(f"{job.name} (complete)\n" + (f"{job.name}: {said}" if said else ""))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["clotho"], "--data takes NAME=PATH with a name among ecals, .*, got 'clotho'"),
        (["msclap=/tmp"], "--data takes NAME=PATH"),
        (["clotho=.", "clotho=."], "--data: clotho is given twice"),
    ],
)
def test_wrong_sources_are_named(words, message):
    with pytest.raises(ValueError, match=message):
        parse_sources(words, DATA, "--data")


def job_of(row, folder, seed=None, **sources):
    row = TABLES["5.1"].row(row)
    return Job(TABLES["5.1"], row, Recipe.read(row.recipe), seed, folder, SOURCES | sources)


def test_an_evaluation_on_other_data_is_refused(tmp_path):
    job = job_of("clap", tmp_path, audiocaps="A")
    job.result.write_text('{"data": "A", "retrieval": 1}')
    assert job.run(Machine())["retrieval"] == 1
    with pytest.raises(ValueError, match=r"evaluation_audiocaps\.json is the evaluation on A, not on B"):
        job_of("clap", tmp_path, audiocaps="B").run(Machine())


def test_all_runs_are_checked_before_the_first_one_begins(tmp_path, monkeypatch):
    first, second = job_of("finetuned", tmp_path / "a", 0), job_of("mlp-audioset", tmp_path / "b", 0, audioset="A")
    second._claim_folder()
    other = job_of("mlp-audioset", tmp_path / "b", 0, audioset="B")
    with pytest.raises(ValueError, match="was started with other settings"):
        _run_all([first, other], TABLES["5.1"], Machine("cpu"))
    assert not first.folder.exists()
    with pytest.raises(ValueError, match="workers must be at least 0"):
        _run_all([first, second], TABLES["5.1"], Machine("cpu", workers=-1))


def test_weights_that_do_not_exist_are_named(tmp_path):
    check_weights({"laion": "laion/clap-htsat-unfused", "clotho": "/no/such/folder"})
    for path in ("weights.pth", "/no/such/folder"):
        with pytest.raises(FileNotFoundError, match=f"--weights: laion: {path} does not exist"):
            check_weights({"laion": path})


def test_sources_that_do_not_exist_are_named():
    with pytest.raises(FileNotFoundError, match="--data: clotho: /no/such/folder does not exist"):
        parse_sources(["clotho=/no/such/folder"], DATA, "--data")
    assert missing(["clotho", "msclap"], {}) == ["--data clotho=PATH", "--weights msclap=PATH"]
