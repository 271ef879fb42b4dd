"""An index of audio files: built, brought up to date, and searched with the model that made it."""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import soundfile
import torch
from support.fake_model import RATE, FakeModel, sound
from support.tiny_clap import tiny_clap

import atk
from atk.data import AudioError, Clip
from atk.eval.index import Index
from atk.eval.index_build import build_index
from atk.eval.index_store import Manifest, fingerprint, writing
from atk.eval.long_audio import FrameStream
from atk.eval.moment_search import search_indexed_moments, search_moments
from atk.eval.moments import MomentConfig
from atk.eval.search import search_all
from atk.eval.sources import is_index


def names(index):
    return sorted(path.name for path in index.paths())


@pytest.fixture
def recordings(tmp_path):
    folder = tmp_path / "audio"
    folder.mkdir()
    for name, *sounds in (("a", "dog", "", "dog"), ("b", "bell", "bell"), ("c", *["", "engine", ""] * 9)):
        soundfile.write(folder / f"{name}.wav", sound(*sounds), RATE)
    return folder


def build(model, folder, out, **options):
    return build_index(model, folder, out, **{"source": "model", "clip_seconds": 1.0, **options})


def test_only_changes_are_encoded(recordings, tmp_path):
    model, out = FakeModel(), tmp_path / "index"
    (recordings / "bad.wav").write_text("no audio")
    assert build(model, recordings, out)[:4] == (3, 0, 0, 0)
    index = Index.open(out)
    stream = FrameStream(model, [Clip("c.wav", recordings / "c.wav", (), 2.7)], 1.0, batch_size=2)
    [(_, expected)] = stream.clips()
    assert torch.equal(index.frames(recordings / "c.wav").frames, expected.frames)
    assert torch.equal(index.frames(recordings / "c.wav").times, expected.times)
    calls = model.calls
    changes = build(model, recordings, out)
    assert changes[:4] == (0, 0, 0, 3) and [name for name, _ in changes.skipped] == ["bad.wav"]
    assert model.calls == calls
    soundfile.write(recordings / "a.wav", sound("bell"), RATE)
    (recordings / "b.wav").unlink()
    (recordings / "c.wav").rename(recordings / "d.wav")
    assert build(model, recordings, out)[:4] == (1, 1, 2, 0)
    assert names(Index.open(out)) == ["a.wav", "d.wav"] and len(list(out.glob("*.arrow"))) == 1
    assert names(index) == ["a.wav", "b.wav", "c.wav"], "an open index must not change"
    (recordings / "a.wav").write_text("damaged")
    assert build(model, recordings, out)[:4] == (0, 0, 1, 1)
    recordings.rename(recordings.with_name("moved"))
    calls = model.calls
    assert build(model, recordings.with_name("moved"), out)[:4] == (0, 0, 0, 1) and model.calls == calls
    assert next(Index.open(out).paths()) == tmp_path / "moved" / "d.wav"


def test_shards_keep_their_names_if_their_folder_moves(recordings, tmp_path, monkeypatch):
    model, out, shards = FakeModel(), tmp_path / "index", tmp_path / "shards"
    (shards / "train").mkdir(parents=True)
    with tarfile.open(shards / "train" / "0.tar", "w") as tar:
        for name in "ab":
            tar.add(recordings / f"{name}.wav", f"{name}.wav")
            (tmp_path / "caption").write_text("a sound")
            tar.add(tmp_path / "caption", f"{name}.txt")
    assert build(model, shards, out)[:4] == (2, 0, 0, 0)
    monkeypatch.chdir(tmp_path)
    calls = model.calls
    assert build(model, "shards", out)[:4] == (0, 0, 0, 2)
    moved = shards.rename(tmp_path / "moved")
    assert build(model, moved, out)[:4] == (0, 0, 0, 2) and model.calls == calls
    assert sorted(Index.open(out).paths()) == [f"{moved}/train/0.tar:{name}.wav" for name in "ab"]
    assert len(Index.open(out).frames(f"{moved}/train/0.tar:a.wav").times)


def test_moments_in_an_index_are_those_in_the_files(recordings, tmp_path):
    model = FakeModel()
    build(model, recordings, tmp_path / "index", dtype="float16")
    index = Index.open(tmp_path / "index")
    options = {"config": MomentConfig(threshold=0.5, smooth=0, merge=0), "top": 3}
    queries = ["dog, then dog", "engine"]
    expected = search_moments(model, recordings, queries, clip_seconds=1.0, **options)
    result = search_indexed_moments(index, queries, model=model, **options)
    assert [[hit[:2] for hit in hits] for hits in result.hits] == [[hit[:2] for hit in hits] for hits in expected.hits]
    assert result.hits[0]
    with pytest.raises(ValueError, match="at least one word"):
        index.search([" "], model=model)


KILLED = """
import os, sys
from atk.eval import index_store
sys.path.insert(0, sys.argv[5])
from support.fake_model import FakeModel
from atk.eval.index_build import build_index
index_store._PART_FRAMES = 1
steps = int(sys.argv[3])
def counted(function):
    def run(*arguments):
        global steps
        steps -= 1
        if steps == 0 and sys.argv[4] == "before": os._exit(9)
        function(*arguments)
        if steps == 0: os._exit(9)
    return run
index_store.write_part, index_store.replace_file = map(counted, (index_store.write_part, index_store.replace_file))
build_index(FakeModel(), sys.argv[1], sys.argv[2], source="model", clip_seconds=1.0, batch_size=1)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "moment"), [(1, "after"), (4, "before"), (4, "after"), (9, "after")])
def test_a_killed_build_continues(recordings, tmp_path, steps, moment):
    out, tests = tmp_path / "index", Path(__file__).parents[1]
    arguments = [sys.executable, "-c", KILLED, str(recordings), str(out), str(steps), moment, str(tests)]
    assert subprocess.run(arguments, check=False, cwd=tests.parent).returncode == 9
    complete = len(Index.open(out)) if is_index(out) else 0
    model = FakeModel()
    changes = build(model, recordings, out)
    assert changes[:4] == (3 - complete, 0, 0, complete)
    fresh = tmp_path / "fresh"
    build(model, recordings, fresh)
    for path in sorted(recordings.iterdir()):
        assert torch.equal(Index.open(out).frames(path).frames, Index.open(fresh).frames(path).frames)
    listed = {name for name, _ in Manifest.read(out).parts}
    assert {path.name for path in out.iterdir()} == {*listed, "atk_index.json", ".lock"}


def test_what_was_encoded_before_an_error_is_kept(recordings, tmp_path):
    model, out = FakeModel(), tmp_path / "index"
    real = model.embed_audio

    def failing(audio, lengths):
        if model.calls == 2:
            raise RuntimeError("no more")
        return real(audio, lengths)

    model.embed_audio = failing
    with pytest.raises(RuntimeError, match="no more"):
        build(model, recordings, out, batch_size=1)
    assert len(Index.open(out)) == 1
    model.embed_audio = real
    assert build(model, recordings, out)[:4] == (2, 0, 0, 1)


@pytest.mark.slow
def test_an_index_is_found_by_its_model(recordings, tmp_path):
    run, out = tmp_path / "model", tmp_path / "index"
    model = tiny_clap()
    model.save_pretrained(run)
    loaded = atk.load(run).model
    build_index(loaded, recordings, out, source=run, clip_seconds=1.0, dtype="float16")
    index = Index.open(out)
    queries = ["a dog barks", "rain"]
    for score in ("global", "max_mean", "both"):
        expected = search_all(loaded, recordings, queries, score=score, clip_seconds=1.0)
        # The last recording is longer than a window, and has windows of its own in the index.
        ranked = index.search(queries, score=score, exact=True)
        for hits, all_hits in zip(ranked, expected.hits, strict=True):
            wanted = {path: value for value, path in all_hits}
            assert {path for _, path in hits} == set(wanted)
            for value, path in hits:
                assert value == pytest.approx(wanted[path], abs=0.002 if path.name != "c.wav" else 0.2)
    assert index.header.score == "global" and index.search(queries) == index.search(queries, score="global")
    other = tiny_clap()
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    assert fingerprint(other) != fingerprint(model) == fingerprint(loaded)
    other.save_pretrained(run)
    for attempt in (
        lambda: Index.open(out).search(queries),
        lambda: index.search(queries, model=other),
        lambda: build_index(other, recordings, out, source=run, clip_seconds=1.0, dtype="float16"),
    ):
        with pytest.raises(ValueError, match=r"made by another model, or by .* before its weights changed"):
            attempt()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float16"}, "dtype: .* was made with int8, got float16"),
        ({"clip_seconds": 2.0}, r"clip_seconds: .* was made with 1\.0, got 2\.0"),
        ({"folder": "other"}, "is the index of .*audio, not of .*other"),
        ({"out": "audio"}, "audio exists and is not an index"),
        ({"dtype": "int4"}, "dtype must be one of"),
        ({"on_error": "raise"}, "bad.wav"),
        ({"folder": "spoiled", "out": "new"}, "spoiled: none of its 1 audio files can be decoded"),
    ],
)
def test_mistakes(recordings, tmp_path, change, message):
    build(FakeModel(), recordings, tmp_path / "index")
    (tmp_path / "other").mkdir()
    soundfile.write(tmp_path / "other" / "x.wav", sound("dog"), RATE)
    (recordings / "bad.wav").write_text("no audio")
    (tmp_path / "spoiled").mkdir()
    soundfile.write(tmp_path / "spoiled" / "x.wav", torch.full((RATE,), torch.nan).numpy(), RATE, subtype="FLOAT")
    folder, out = tmp_path / change.pop("folder", "audio"), tmp_path / change.pop("out", "index")
    with pytest.raises((ValueError, AudioError), match=message):
        build(FakeModel(), folder, out, **change)


def test_damage_is_named(recordings, tmp_path):
    out = tmp_path / "index"
    with pytest.raises(FileNotFoundError, match="no such index"):
        Index.open(out)
    build(FakeModel(), recordings, out)
    with writing(out, Manifest.read(out).header), pytest.raises(ValueError, match="written by another process"):
        build(FakeModel(), recordings, out)
    [part] = out.glob("*.arrow")
    content = part.read_bytes()
    part.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=re.escape(f"{part}: not a part of an index, or damaged")):
        Index.open(out)
    os.truncate(part, 0)
    with pytest.raises(ValueError, match="damaged"):
        Index.open(out)
    part.unlink()
    with pytest.raises(FileNotFoundError, match="no such part"):
        Index.open(out)
    (out / "atk_index.json").write_text('{"format": 2}')
    with pytest.raises(ValueError, match="format 2, which this version cannot read"):
        Index.open(out)


def test_clips_of_the_same_name_are_reported(recordings, tmp_path):
    with tarfile.open(tmp_path / "twice.tar", "w") as tar:
        for name in "ab":
            tar.add(recordings / f"{name}.wav", "a.wav")
    changes = build(FakeModel(), tmp_path / "twice.tar", tmp_path / "index")
    assert changes.added == 1
    assert changes.skipped == [(f"{tmp_path}/twice.tar:a.wav", "another clip has this name, too")]
    with pytest.raises(AudioError, match="another clip has this name, too"):
        build(FakeModel(), tmp_path / "twice.tar", tmp_path / "index", on_error="raise")


def test_other_audio_of_the_same_size_in_a_table_counts_as_changed(recordings, tmp_path):
    pytest.importorskip("datasets", reason="needs the extra hub")
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    def write(*names):
        audio = [{"bytes": (recordings / f"{name}.wav").read_bytes(), "path": None} for name in names]
        pq.write_table(pa.table({"audio": audio}), tmp_path / "table" / "train-00000-of-00001.parquet")

    (tmp_path / "table").mkdir()
    soundfile.write(recordings / "a.wav", sound("dog"), RATE)
    soundfile.write(recordings / "b.wav", sound("bell"), RATE)
    write("a", "c")
    assert build(FakeModel(), tmp_path / "table", tmp_path / "index")[:4] == (2, 0, 0, 0)
    assert build(FakeModel(), tmp_path / "table", tmp_path / "index")[:4] == (0, 0, 0, 2)
    write("b", "c")
    assert build(FakeModel(), tmp_path / "table", tmp_path / "index")[:4] == (0, 1, 0, 1)


def test_a_refused_option_does_not_stay_in_an_index(recordings, tmp_path):
    with pytest.raises(ValueError, match="context_seconds"):
        build(FakeModel(), recordings, tmp_path / "index", context_seconds=100.0)
    assert build(FakeModel(), recordings, tmp_path / "index").added == 3
    assert Index.open(tmp_path / "index").header.context_seconds is None


def test_another_range_of_shards_is_another_data_set(recordings, tmp_path, monkeypatch):
    for name in "ab":
        with tarfile.open(tmp_path / f"{name}0.tar", "w") as tar:
            tar.add(recordings / f"{name}.wav", f"{name}.wav")
    monkeypatch.chdir(tmp_path)
    build(FakeModel(), "a{0..0}.tar", "index")
    assert Index.open("index").header.folder == f"{tmp_path}/a{{0..0}}.tar"
    with pytest.raises(ValueError, match=r"is the index of .*/a\{0\.\.0\}\.tar, not of .*/b\{0\.\.0\}\.tar"):
        build(FakeModel(), "b{0..0}.tar", "index")
