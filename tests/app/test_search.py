"""What the search tab shows, without a browser: answers, views, and what is refused."""

import base64
import io
import re

import pytest
import soundfile
import torch
from support.fake_model import FRAME, RATE, FakeModel, sound

from atk.app import library as library_module
from atk.app.library import Library, Origin, index_folder
from atk.app.player import player
from atk.app.searching import LONGEST_QUERY, MOST_RESULTS, Hit, answer, clip_rows, moment_rows
from atk.app.views import LONGEST, view_of
from atk.data import AudioError
from atk.eval.moments import Moment, MomentConfig

PLAIN = MomentConfig(smooth=0.0, threshold=0.5)
ORIGIN = Origin("model", None, 1.0)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "audio"
    (folder / "more").mkdir(parents=True)
    soundfile.write(folder / "a.wav", sound(*[""] * 60, "dog", "dog", "", "bell", *[""] * 60), RATE)
    soundfile.write(folder / "more" / "<b>.wav", sound("bell", "", "dog"), RATE)
    return folder


@pytest.fixture
def library(folder, tmp_path):
    model = FakeModel()
    opened = Library(model, ORIGIN, index_folder(model, ORIGIN, folder, tmp_path / "index"))
    yield opened
    opened.close()


def test_an_answer_lists_moments_and_recordings(library):
    given = answer(library, "dog, then bell", None, 10, PLAIN)
    assert given.phrases == ("dog", "bell")
    assert moment_rows(given.moments) == [["1.000", "a.wav", "6.00-6.40 s (6.00-6.20, 6.30-6.40)"]]
    assert sorted(name for _, name in clip_rows(given.clips)) == ["a.wav", "more/<b>.wav"]
    assert moment_rows(answer(library, "bell", None, 1, PLAIN).moments) == [["1.000", "a.wav", "6.30-6.40 s"]]
    assert answer(library, "engine", None, 10, PLAIN).moments == []


def test_a_view_shows_and_plays_the_seconds_around_a_moment(library):
    given = answer(library, "dog, then bell", None, 10, PLAIN)
    view = view_of(library.index(None), library.model, given, given.moments[0])
    assert (view.start, view.seconds, view.moment) == pytest.approx((2.0, 8.4, 6.0))
    wave, rate = soundfile.read(io.BytesIO(view.sound), dtype="float32")
    expected = sound(*[""] * 40, "dog", "dog", "", "bell", *[""] * 40)
    assert rate == RATE and torch.allclose(torch.from_numpy(wave), torch.from_numpy(expected), atol=1e-4)
    assert view.picture.startswith(b"\x89PNG") and 0 < view.left < 0.3 < 0.8 < view.right < 1
    whole = view_of(library.index(None), library.model, given, given.clips[0])
    assert whole.start == whole.moment == 0 and whole.title == given.clips[0].name


def test_a_view_is_short(library, folder, tmp_path):
    soundfile.write(folder / "long.wav", sound(*["dog"] * 600), RATE)
    index = index_folder(library.model, ORIGIN, folder, tmp_path / "index")
    library.folder = index
    given = answer(library, "dog", None, 10, PLAIN)
    hit = next(hit for hit in given.moments if hit.name == "long.wav")
    assert hit.moment.end > 59
    assert view_of(index, library.model, given, hit).seconds == LONGEST


def test_names_are_escaped_and_the_sound_starts_at_the_moment(library):
    given = answer(library, "dog", None, 10, PLAIN)
    hit = next(hit for hit in given.moments if "<b>" in hit.name)
    view = view_of(library.index(None), library.model, given, hit)
    page = player(view)
    assert "<b>" not in page and page.count("&lt;b&gt;") == 2
    assert f'data-from="{0.2:.5f}"' in page
    assert base64.b64decode(re.search(r"data:audio/flac;base64,([^\"]+)", page)[1]) == view.sound
    assert " autoplay" not in page and " autoplay" in player(view, autoplay=True)


def test_uploads_are_encoded_once_and_the_last_ones_kept(library, tmp_path, monkeypatch):
    monkeypatch.setattr(library_module, "_KEPT_UPLOADS", 2)
    files = []
    for name in ("dog", "bell", "engine"):
        files.append(str(tmp_path / f"{name}.wav"))
        soundfile.write(files[-1], sound("", name, "", name), RATE)
        given = answer(library, name, files[-1], 10, PLAIN)
        assert [row[1:] for row in moment_rows(given.moments)] == [[f"{name}.wav", "0.10-0.40 s"]]
        assert given.clips == []
        view_of(library.index(given.upload), library.model, given, given.moments[0])
    calls = library.model.calls
    folders = [library.index(file).folder for file in files[1:]]
    assert library.model.calls == calls
    first = library.index(files[0]).folder
    assert library.model.calls == calls + 1
    assert first.is_dir() and [folder.is_dir() for folder in folders] == [False, True]
    library.close()
    assert not first.exists()


@pytest.mark.parametrize(
    ("query", "top", "message"),
    [
        ("", 10, "at least one word"),
        (" \t\n", 10, "at least one word"),
        ("?!,;", 10, "at least one word"),
        ("a" * (LONGEST_QUERY + 1), 10, "at most 500 characters, got 501"),
        ("dog", 0, "results must be at least 1"),
        ("dog", MOST_RESULTS + 1, "results: at most 50, got 51"),
    ],
)
def test_bad_queries_are_refused(library, query, top, message):
    with pytest.raises(ValueError, match=message):
        answer(library, query, None, top, PLAIN)


def test_bad_uploads_are_refused(library, tmp_path, monkeypatch):
    file = tmp_path / "a.wav"
    soundfile.write(file, sound(*["dog"] * 30), RATE)
    monkeypatch.setattr(library_module, "LONGEST_UPLOAD", 2.0)
    with pytest.raises(ValueError, match=r"a\.wav: files may last 2 s at most here, got 3 s"):
        answer(library, "dog", str(file), 10, PLAIN)
    file.write_text("not audio")
    with pytest.raises(AudioError, match=r"a\.wav"):
        answer(library, "dog", str(file), 10, PLAIN)
    with pytest.raises(ValueError, match="no folder to search in"):
        answer(Library(library.model, ORIGIN, None), "dog", None, 10, PLAIN)


def test_links_out_of_the_folder_and_recordings_that_are_gone_are_not_played(library, folder, tmp_path):
    given = answer(library, "dog", None, 10, PLAIN)
    hit = next(hit for hit in given.moments if hit.name == "a.wav")
    outside = tmp_path / "outside.wav"
    (folder / "a.wav").rename(outside)
    with pytest.raises(AudioError, match="no such file"):
        view_of(library.index(None), library.model, given, hit)
    (folder / "a.wav").symlink_to(outside)
    with pytest.raises(ValueError, match=r"a\.wav is a link to a file outside of the folder"):
        view_of(library.index(None), library.model, given, hit)
    (folder / "a.wav").unlink()
    (folder / "a.wav").symlink_to(folder / "more" / "<b>.wav")
    assert view_of(library.index(None), library.model, given, given.clips[0]).picture
    inside = Hit("shard.tar/a.wav", "a.wav", Moment(0.0, FRAME / RATE, 1.0, ()))
    with pytest.raises(ValueError, match=r"a\.wav lies inside a larger file"):
        view_of(library.index(None), library.model, given, inside)
