"""The benchmark of large batches: the memory limit and peaks, rows, stages of a step, the page, and the plot."""

import json
import sys

import pytest
import torch

import large_batch
import large_batch_page
import large_batch_profile
from atk.models.audio import AudioEncoderConfig
from atk.models.clap import CLAP, ModelConfig
from atk.soundscapes import SoundscapeConfig, write_soundscapes
from atk.train.aligned import AlignedConfig

TINY = AudioEncoderConfig(channels=(4, 4, 4, 4), width=16, layers=1, heads=2)
ALLOCATE = "import time; data = bytearray(b'x') * ({mib} << 20); time.sleep(1.5)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    runs = tmp_path_factory.mktemp("large")
    scenes = SoundscapeConfig.preset("medium", train=8, val=0, test=0, seconds=(4.0, 4.0))
    write_soundscapes(runs / "data", scenes, progress=False, processes=1)
    return runs


def row(series, batch, status="ok", **values):
    known = {
        "loss": 1.0,
        "step_seconds": [2.0, 4.0],
        "peak": 300.0 + batch,
        "peak_by_system": 301,
        "peak_with_workers": 400,
    }
    return large_batch.Row(series, batch, status, **(known if status == "ok" else {}) | values)


@pytest.mark.slow
def test_memory_of_a_run_and_of_its_children_is_measured(tmp_path):
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ALLOCATE.format(mib=200)!r}])"
    code, process_mib, family_mib = large_batch.run_limited([sys.executable, "-c", child], tmp_path / "log", 1 << 30)
    assert code == 0 and process_mib < 150 and family_mib > 200
    code, process_mib, family_mib = large_batch.run_limited(
        [sys.executable, "-c", ALLOCATE.format(mib=200)], tmp_path / "log", 1 << 30
    )
    assert code == 0 and process_mib > 200 and family_mib == pytest.approx(process_mib, rel=0.2)


def test_memory_beyond_the_limit_is_refused_and_reported(tmp_path):
    log = tmp_path / "log"
    code, process_mib, _ = large_batch.run_limited([sys.executable, "-c", ALLOCATE.format(mib=600)], log, 400 << 20)
    assert process_mib < 400 and large_batch.failure(code, log.read_text())[0] == "out of memory"
    message = f"RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried to allocate {3 << 30} bytes. Err"
    assert large_batch.failure(1, message) == ("out of memory", "one tensor of 3.0 GiB was refused")
    assert large_batch.failure(2, "first\natk train: data: no such folder\n") == (
        "failed",
        "atk train: data: no such folder",
    )
    assert large_batch.failure(-9, "") == ("failed", "exit code -9")


@pytest.mark.exhaustive
def test_a_run_is_measured(folder, monkeypatch):
    small = {"model.audio.channels": [4, 4, 4, 4], "model.audio.layers": 1, "workers": 0}
    monkeypatch.setattr(large_batch, "RUN", large_batch.RUN | small)
    result = large_batch.train("fused, cached", 4, 2, 2, folder, 8 << 30)
    assert (result.status, result.note) == ("ok", "") and result.loss > 0
    assert len(result.step_seconds) == 2 and min(result.step_seconds) > 0
    # The trainer samples its memory, so it can miss a short peak on a busy machine.
    assert 0.75 * result.peak_by_system < result.peak < 1.1 * result.peak_by_system
    config = (folder / "cpp-2-4" / "config.yaml").read_text()
    assert "micro_batch: 2" in config and "backend: cpp" in config


def test_a_series_stops_at_its_first_failure_and_a_different_loss_is_wrong(monkeypatch):
    outcomes = {
        ("naive, cached", 4): row("naive, cached", 4, loss=1.1),
        ("naive, cached", 8): row("naive, cached", 8, "out of memory", note="refused", peak_by_system=5),
        ("fused, at once", 4): row("fused, at once", 4, loss=1.2),  # not compared with cached: dropout differs
    }
    tried = []

    def train(series, batch, *_):
        tried.append((series, batch))
        return outcomes.get((series, batch)) or row(series, batch)

    monkeypatch.setattr(large_batch, "train", train)
    rows = large_batch.measure(["fused, cached", "naive, cached", "fused, at once"], [16, 8, 4], 2, None, 1)
    states = {(result.series, result.batch): result.status for result in rows}
    assert [states["naive, cached", n] for n in (4, 8, 16)] == ["wrong", "out of memory", "not tried"]
    assert ("naive, cached", 16) not in tried
    assert all(status == "ok" for (series, _), status in states.items() if series.startswith("fused"))


def test_sizes_are_those_of_the_tensors(folder):
    computed = large_batch.sizes(folder / "data", [4, 1 << 13])
    clips = large_batch.read_split(folder / "data", "train").clips
    captions = [caption for clip in clips for caption in clip.captions]
    model = CLAP.create(ModelConfig(), captions)
    audio = model.encode_audio(torch.zeros(1, computed["samples"]), torch.tensor([computed["samples"]]))
    text = model.encode_text(model.tokenize(captions))
    assert computed["samples"] == 4 * 16000 and audio.frames.shape[1] == computed["frames"]
    assert text.tokens.shape[1] == computed["tokens"]
    small, large = computed["mib"]["4"], computed["mib"][str(1 << 13)]
    assert small["naive scores"] * 2**20 == 4 * 4 * 4 * computed["frames"] * computed["tokens"]
    assert large["waveforms"] == 2000 and large["scores"] == 256
    assert small["winners"] > 0 and large["winners"] == 0  # beyond the budget of the op


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_every_moment_of_a_step_belongs_to_a_stage(folder, tmp_path, micro_batch):
    config = AlignedConfig(
        str(folder / "data"), str(tmp_path), batch_size=4, micro_batch=micro_batch, steps=3, workers=0, device="cpu",
        clip_seconds=0.5, precision="fp32", backend="cpp", eval_every=0, model=ModelConfig(dim=16, audio=TINY),
    )  # fmt: skip
    result = large_batch_profile.profile(config)
    encoders = {f"{name} encoder, {part}" for name in ("audio", "text") for part in ("forward", "backward")}
    rest = {"waiting for data", "tokenizer", "features (log-mel)", "loss, forward", "loss, backward", "optimizer"}
    assert result["stages"].keys() >= encoders | rest and result["steps"] == 2
    assert any("first pass" in name for name in result["stages"]) == (micro_batch is not None)
    assert min(result["ops"]["atk::max_mean_forward"], result["ops"]["atk::max_mean_backward"]) > 0


def test_stages_add_up_to_the_time(monkeypatch):
    moments = iter([0.0, 1.0, 3.0, 7.0, 8.0, 20.0])
    monkeypatch.setattr(large_batch_profile.time, "perf_counter", lambda: next(moments))
    stages = large_batch_profile.Stages()
    for stage in ("a", "b", "a", None, "b"):
        stages.enter(stage)
    assert stages.seconds == {"a": 2.0 + 1.0, "b": 4.0}


def record(rows):
    names = ("waveforms", "embeddings", "scores", "winners", "naive scores")
    mib = {str(n): dict.fromkeys(names, n / 4) for n in (4, 8)}
    steps = {
        "environment": {"cpu": "abacus"},
        "limit_gib": 3,
        "sizes": {"samples": 9, "frames": 50, "tokens": 20, "mib": mib},
        "rows": [large_batch.asdict(result) for result in rows],
    }
    stages = {"waiting for data": 1.0, "audio encoder, forward": 3.0}
    timed = {"batch": 4, "micro_batch": None, "workers": 1, "steps": 2, "stages": stages, "step_seconds": 4.0}
    profile = {"environment": {"cpu": "abacus"}, "rows": [timed | {"ops": {"atk::op": 0.5}}]}
    setting = {"scenes": large_batch.SCENES | {"train": 8}, "run": large_batch.RUN, "micro_batch": 2}
    return {"setting": setting, "parts": {"steps": steps, "profile": profile}, "interpretation": ""}


def test_the_page_and_the_plot_come_from_the_record(tmp_path):
    rows = [row("fused, cached", 4), row("fused, cached", 8, peak=912.0), row("naive, cached", 4)]
    rows.append(
        row("naive, cached", 8, "out of memory", note="asked too much", peak_by_system=5.0, peak_with_workers=6.0)
    )
    saved = record(rows)
    page = large_batch_page.render_page(saved)
    assert "| 8 | 3.0 s, 912 MiB | out of memory |" in page and "naive, cached, 8: asked too much." in page
    assert f"factor of {912 / 304:.2f}, and by {(912 - 2) / (304 - 1):.2f} without the waveforms" in page
    assert "| audio encoder, forward | 3.000 (75.0 %) |" in page and "| of which `atk::op` | 0.500 (12.5 %) |" in page
    assert page.index("| audio encoder") < page.index("| waiting for data") and page.count("abacus") == 2
    large_batch_page.draw(tmp_path / "plot.png", saved["parts"]["steps"])
    assert (tmp_path / "plot.png").stat().st_size > 10000
    del saved["parts"]["steps"]
    assert "png" not in large_batch_page.render_page(saved)


@pytest.mark.slow
def test_measuring_one_part_again_keeps_the_other(folder, tmp_path, monkeypatch):
    timed = record([])["parts"]["profile"]["rows"]
    monkeypatch.setattr(large_batch, "run_atk", lambda *_: None)
    monkeypatch.setattr(large_batch, "train", lambda series, batch, *_: row(series, batch))
    monkeypatch.setattr(large_batch, "profiles", lambda *_: timed)
    monkeypatch.setattr(large_batch.signal, "signal", lambda *_: None)
    command = ["large_batch.py", "--quick", "--runs", str(folder), "--results", str(tmp_path), "--limit-gib", "0.5"]
    for parts in (["steps"], ["profile"]):
        monkeypatch.setattr(sys, "argv", [*command, "--parts", *parts])
        large_batch.main()
        saved = json.loads((tmp_path / "large_batch.json").read_text())
    assert saved["parts"].keys() == {"steps", "profile"} and "commit" in saved["parts"]["steps"]["environment"]
    assert len(saved["parts"]["steps"]["rows"]) == 2 * len(large_batch.SERIES)
    assert (tmp_path / "large_batch.png").exists()
    monkeypatch.setattr(sys, "argv", [*command, "--limit-gib", "99999"])
    with pytest.raises(SystemExit):
        large_batch.main()
