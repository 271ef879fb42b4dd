"""Comparisons of training runs: planned runs, reported runs, and pages."""

import json
import sys
from pathlib import Path

import pytest

import aligned_vs_global
import data_loading
import difference_captioning
import experiments
import exported_models
import fine_tuning
import integration_losses
import noise_unlabeled
import plain_captioning
import semisupervised_retrieval
import timed_captions
import unified

RESULTS = Path(experiments.__file__).parent / "results"
PAGES = {
    "aligned_vs_global": aligned_vs_global.render_page,
    "aligned_vs_global_recorded": aligned_vs_global.render_page,
    "data_loading": data_loading.render_page,
    "difference_captioning": difference_captioning.render_page,
    "exported_models": exported_models.render_page,
    "fine_tuning": fine_tuning.render_page,
    "integration_losses": integration_losses.page,
    "noise_unlabeled": noise_unlabeled.render_page,
    "plain_captioning": plain_captioning.render_page,
    "semisupervised_retrieval": semisupervised_retrieval.render_page,
    "timed_captions": timed_captions.render_page,
    "timed_captions_recorded": timed_captions.render_page,
    "unified": unified.render_page,
}


@pytest.mark.parametrize("name", PAGES)
def test_the_page_of_results_is_that_of_its_record(name):
    record = json.loads((RESULTS / f"{name}.json").read_text())
    assert PAGES[name](record) == (RESULTS / f"{name}.md").read_text()


def test_a_run_with_other_settings_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("steps: 3\noptim: {lr: 0.001}\n")
    experiments.check_settings(tmp_path, {"steps": 3, "optim.lr": 1e-3})
    with pytest.raises(SystemExit, match=r"was trained with optim\.lr 0\.001, not 0\.1"):
        experiments.check_settings(tmp_path, {"steps": 3, "optim.lr": 0.1})


def test_results_go_to_a_new_folder(tmp_path):
    experiments.write_results(
        tmp_path / "new" / "page", {"rows": []}, lambda record: f"{record['interpretation']}.", "why"
    )
    assert (tmp_path / "new" / "page.md").read_text() == "why."


def test_an_interpretation_is_kept(tmp_path):
    (tmp_path / "page.json").write_text('{"interpretation": "why"}')
    experiments.write_results(tmp_path / "page", {}, lambda record: record["interpretation"], "")
    assert (tmp_path / "page.md").read_text() == "why"


@pytest.mark.parametrize(
    ("name", "arms", "flags"),
    [
        ("aligned_vs_global", aligned_vs_global.ARMS, []),
        ("aligned_vs_global_recorded", aligned_vs_global.RECORDED_ARMS, ["--events", "recordings"]),
    ],
)
def test_a_report_uses_the_seeds_that_every_arm_has_finished(tmp_path, monkeypatch, name, arms, flags):
    scores = dict.fromkeys(("R@1", "R@5", "R@10", "mAP@10", "MedR"), 10.0)
    metrics = {"text_to_audio": scores, "audio_to_text": scores, "twins": {"global": 50.0, "max_mean": 60.0}}
    metrics["alignment"] = {"right": 40.0, "chance": 20.0}
    for key, (out, _) in aligned_vs_global.plan(tmp_path, 2, 10, arms).items():
        if key != ("global", 1):
            out.mkdir()
            (out / "summary.json").write_text(json.dumps({"seconds": 3.0, "metrics": metrics}))
    (tmp_path / "data").mkdir()
    scenes = "{train: 6, test: 2, twins: 1, recordings: " + ("/home/me/recordings}" if flags else "''}")
    (tmp_path / "data" / "soundscapes.yaml").write_text(scenes)
    command = ["--runs", str(tmp_path), "--results", str(tmp_path / "page"), "--seeds", "2", "--report", *flags]
    monkeypatch.setattr(sys, "argv", ["aligned_vs_global.py", *command])
    aligned_vs_global.main()
    record = json.loads((tmp_path / "page" / f"{name}.json").read_text())
    assert [(row["arm"], row["seed"]) for row in record["rows"]] == [(arm, 0) for arm in arms]
    assert record["scenes"]["recordings"] == ("recordings" if flags else "")
    page = (tmp_path / "page" / f"{name}.md").read_text()
    assert "| twins, max-mean " + "| 60.0 " * len(arms) + "|" in page
    assert "| twins, max-mean " + "| +0.0 " * (len(arms) - 1) + "|" in page


def test_captioned_clips_and_audio_come_from_different_rows(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "val.csv").touch()
    rows = [f"audio/{name}.wav,a dog" for name in range(5)]
    (data / "train.csv").write_text("\n".join(["file_name,caption", *rows]))
    experiments.captioned_clips(data, tmp_path / "few", 2, ["val.csv"])
    experiments.audio_of_clips(data, tmp_path / "audio", slice(3, 5))
    assert (tmp_path / "few" / "train.csv").read_text().split() == ["file_name,caption", *" ".join(rows[:2]).split()]
    assert (tmp_path / "few" / "val.csv").resolve() == data / "val.csv"
    assert sorted(path.name for path in (tmp_path / "audio").iterdir()) == ["3.wav", "4.wav"]


def test_gains_are_paired_by_the_seeds_that_both_arms_have_finished():
    values = {"a": {0: 1.0, 1: 5.0, 2: 7.0}, "b": {1: 4.0, 2: 4.0}}
    rows = [{"arm": arm, "seed": seed, "R": value} for arm, seeds in values.items() for seed, value in seeds.items()]
    assert experiments.gains_table(rows, {"b or a": ("b", "a")}, ["R"]).endswith("| b or a | -2.0 ± 12.7 | 2 |")
    assert experiments.gains_table(rows, {"a or c": ("a", "c")}, ["R"]).endswith("| a or c |  | 0 |")
    assert experiments.means_table(rows, ["b", "c"], ["R"]).endswith("| b | 4.0 ± 0.0 | 2 |\n| c |  | 0 |")


@pytest.mark.parametrize("study", [plain_captioning, noise_unlabeled])
def test_every_gain_is_between_arms_of_the_study_with_runs_of_their_own(study):
    runs = study.plan(Path("runs"), 2)
    assert len({out for out, _ in runs.values()}) == len(runs) == 2 * len(study.ARMS)
    assert {arm for pair in study.GAINS.values() for arm in pair} == set(study.ARMS)


def test_plain_captioning_compares_what_is_finished(tmp_path, monkeypatch):
    scores = {mode: dict.fromkeys(("CIDEr", "ROUGE-L"), 0.5) for mode in ("input", "mix", "minus_added")}
    scores["minus_added"] = dict.fromkeys(("CIDEr", "ROUGE-L"), 0.75)
    named = {mode: {"target": 50.0, "target_alone": 60.0} for mode in scores}
    log = [{"step": 1, "loss": 3.0}, *({"step": step, "val/log_likelihood": -step} for step in (2, 3))]
    runs = plain_captioning.plan(tmp_path, 2)
    for arm, modes in (("plain", ("input", "mix")), ("mask", tuple(scores))):
        out, _ = runs[f"{plain_captioning.BASE}: {arm}", 0]
        out.mkdir()
        metrics = {mode: scores[mode] for mode in modes} | {"named": {mode: named[mode] for mode in modes}}
        (out / "summary.json").write_text(json.dumps({"seconds": 3.0, "metrics": metrics}))
        (out / "metrics.jsonl").write_text("\n".join(map(json.dumps, log)))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "soundscapes.yaml").write_text("{train: 3000, val: 1, test: 2, captions_per_clip: 5}")
    monkeypatch.setattr(sys, "argv", ["plain", "--runs", str(tmp_path), "--results", str(tmp_path), "--report"])
    plain_captioning.main()
    page = (tmp_path / "plain_captioning.md").read_text()
    assert f"| {plain_captioning.BASE}: mask | +0.0 | +0.0 | +25.0 | +0.0 | +0.0 | +0.0 | +0.0 | 1 |" in page
    assert f"| {plain_captioning.BASE}: plain | 50.0 | 50.0 | 50.0 | 50.0 | 50.0 | 60.0 | -200.0 | 2.0 | 1 |" in page


def test_the_tables_have_a_column_per_objective_or_condition():
    def row(objective, condition, seed):
        shares = {"target": 50.0, "added": 5.0}
        scores = {"CIDEr": 0.1 * seed}
        named = {"named input": shares, "named mixture": shares, "named minus_input": shares}
        return {
            "objective": objective,
            "condition": condition,
            "seed": seed,
            "input": scores,
            "mixture": scores,
            **named,
        }

    rows = [row(*key) for key in difference_captioning.plan(Path("runs"), 2, 10)]
    alone, mixtures, conditions = difference_captioning.tables(rows).values()
    assert "| CIDEr | 0.050 (0.071) |" in alone and alone.splitlines()[0].count("|") == 6
    assert "| names the added event, % | 5.0 (0.0) |" in mixtures and "METEOR" not in mixtures
    assert conditions.splitlines()[0] == "| | same/same | same/diff | diff/diff | multi/same | multi/diff |"


def test_unified_training_is_compared_seed_by_seed_with_the_best_other_arm(tmp_path):
    rows = []
    for seed, advantage in ((0, 1.0), (1, 3.0)):
        for arm, terms in unified.ARMS.items():
            retrieves, captions = set(terms) != {"caption"}, "caption" in terms
            score = 50.0 + 10 * seed + (advantage if arm == "unified" else 0.0) - (arm == "semi-supervised")
            groups = {group: dict.fromkeys(("R@1", "R@5", "R@10", "mAP@10"), score) for group in unified.DIRECTIONS}
            groups["alignment"] = {"right": score}
            metrics = groups if retrieves else {}
            metrics |= {"captioning": {"input": {"CIDEr": score / 100}}} if captions else {}
            rows.append({"arm": arm, "seed": seed, "steps": 7, "values": unified.values_of(metrics)})
    lines = unified.table(rows).splitlines()
    half = 12.706 * 1.0  # the standard error of 1 and 3 is 1
    values = "57.0 ± 76.2 | 55.0 ± 63.5 | 55.0 ± 63.5 | 54.0 ± 63.5 | "
    assert f"| t2a R@1 | {values} | +2.0 ± {half:.1f} | +0.0 ± 0.0 |" in lines
    (line,) = [line for line in lines if line.startswith("| CIDEr")]
    assert line.startswith("| CIDEr, clip alone | 57.0 ± 76.2 | 55.0 ± 63.5 |  |  | 55.0 ± 63.5 |")
    assert lines[-1] == "| steps | 7 | 7 | 7 | 7 | 7 | | |"


def test_gains_of_fine_tuning_are_paired_by_seed():
    columns = [f"{group} {name}" for group, name in fine_tuning.COLUMNS]
    before = [{"arm": fine_tuning.BEFORE, "seed": seed, **dict.fromkeys(columns, 10.0 * seed)} for seed in range(3)]
    after = [
        {"arm": arm, "seed": seed, **dict.fromkeys(columns, 10.0 * seed + gain)}
        for arm in fine_tuning.ARMS
        for seed, gain in ((2, 3.0), (0, 1.0), (1, 2.0))
    ]
    lines = fine_tuning.table(before + after).splitlines()
    assert lines[2].startswith("| not fine-tuned | 10.0 ± 24.8 |")
    assert [line.split(" | ")[-1] for line in lines[3:]] == ["2.0 ± 2.5 |"] * len(fine_tuning.ARMS)
    assert experiments.mean_and_interval([1.25]) == "1.2"


def test_the_page_of_timed_captions_compares_each_seed_with_its_baseline(tmp_path, monkeypatch):
    for (arm, seed), (out, _) in timed_captions.plan(tmp_path, 3, 10).items():
        out.mkdir()
        (out / "summary.json").write_text('{"seconds": 3.0}')
        gain = (arm == "timed") * (2 + seed)
        values = dict.fromkeys((*timed_captions.COLUMNS, "chance"), 10.0 * seed + gain)
        (out / "timed_captions.json").write_text(json.dumps(values))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "soundscapes.yaml").write_text("{train: 6, test: 2, val: 1, recordings: ''}")
    command = ["--runs", str(tmp_path), "--results", str(tmp_path / "page"), "--report"]
    monkeypatch.setattr(sys, "argv", ["timed_captions.py", *command])
    timed_captions.main()
    page = (tmp_path / "page" / "timed_captions.md").read_text()
    assert "| frames | +0.0 ± 0.0 |" in page and "| timed | +3.0 ± 2.5 |" in page  # 4.303 / sqrt(3)
