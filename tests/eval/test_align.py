"""Alignment maps, scores, and figures of a model with known embeddings, and tables of events."""

import csv

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from support.fake_model import OTHER, RATE, SOUNDS, FakeModel, sound

from atk.data import AudioError
from atk.data.side_files import Event, find_events, read_events, read_tags, read_twins
from atk.eval.alignment import alignment_score, similarity_map
from atk.eval.embed import ClipEmbedding
from atk.eval.figures import align, align_figure
from atk.models.audio import AudioEncoderConfig
from atk.models.clap import CLAP, ModelConfig
from atk.models.text import TextEncoderConfig

CAPTION = "A dog, then an ENGINE; (two bells)."
SCENE = ("dog", "dog", "", "engine", "bell")


def clip(*names):
    axes = torch.tensor([SOUNDS.index(name) if name else OTHER for name in names])
    frames = torch.nn.functional.one_hot(axes, OTHER + 1).float()
    return ClipEmbedding(frames.mean(0), frames, (torch.arange(len(names)) + 0.5) * 0.1)


def score(scene, events, caption=CAPTION):
    return alignment_score(FakeModel(), {"a.wav": clip(*scene)}, {"a.wav": ["a wind blows", caption]}, events)


def test_map_merges_tokens_into_words():
    alignment = similarity_map(FakeModel(), clip(*SCENE), CAPTION)
    assert alignment.words == ["A", "dog", "then", "an", "ENGINE", "two", "bells"]
    rows = dict(zip(alignment.words, alignment.similarity.tolist(), strict=True))
    assert rows["dog"] == [1, 1, 0, 0, 0]
    assert rows["ENGINE"] == [0, 0, 0, 1, 0]  # two tokens
    assert rows["then"] == [0, 0, 1, 0, 0]


def test_map_averages_the_tokens_of_a_word():
    class TwoSounds(FakeModel):
        def embed_text(self, captions):
            text = super().embed_text(captions)
            text.tokens[0, 1] = torch.eye(4)[0]
            text.tokens[0, 2] = torch.eye(4)[2]
            return text

    alignment = similarity_map(TwoSounds(), clip("dog", "engine", "bell"), "barking bell")
    assert alignment.words == ["barking", "bell"]
    assert alignment.similarity[0].tolist() == pytest.approx([1 / 3, 1 / 3, 0])  # bar, kin, g


def test_map_of_a_list_embeds_each_entry_separately():
    alignment = similarity_map(FakeModel(), clip(*SCENE), ["engine", "a dog"])
    assert alignment.words == ["engine", "a dog"]
    assert alignment.similarity.tolist() == [[0, 0, 0, 1, 0], [0.5, 0.5, 0.5, 0, 0]]


@pytest.mark.parametrize("caption", ["cafe\u0301 dog", "naïve 犬 dog", "o'clock re-entry dog"])
def test_words_include_accents_apostrophes_and_hyphens(caption):
    assert similarity_map(FakeModel(), clip("dog"), caption).words == caption.split()


def test_truncated_words_are_left_out():
    class Short(FakeModel):
        def embed_text(self, captions):
            text = super().embed_text(captions)
            return text._replace(mask=text.mask & (torch.arange(text.mask.shape[1]) < 3))

    model = Short()
    assert similarity_map(model, clip("dog"), "a dog barks").words == ["a", "dog"]
    events = [Event("a.wav", "", "dog", 0, 0.1), Event("a.wav", "", "bell", 0, 0.1)]
    result = alignment_score(model, {"a.wav": clip("dog", "bell")}, {"a.wav": ["a dog barks near a bell"]}, events)
    assert (result["right"], result["phrases"], result["left_out"]) == (100, 1, 1)


@pytest.mark.slow
def test_map_with_a_trained_subword_tokenizer():
    audio = AudioEncoderConfig(mel_bins=16, channels=(2, 2, 2, 2), width=8, layers=1, heads=1)
    text = TextEncoderConfig(vocabulary=40, width=8, layers=1, heads=1)
    model = CLAP.create(ModelConfig(4, audio, text), ["a dog barks", "the bells ring"]).eval()
    caption = "Bells, bells & DOGS barking unheard-of!"
    frames = torch.nn.functional.normalize(torch.randn(6, 4), dim=1)
    alignment = similarity_map(model, ClipEmbedding(frames[0], frames, torch.arange(6.0)), caption)
    assert alignment.words == ["Bells", "bells", "DOGS", "barking", "unheard-of"]
    with torch.no_grad():
        embedded = model.embed_text([caption])
    starts = embedded.offsets[0, :, 0].tolist()
    pieces = [t for t, start in enumerate(starts) if 15 <= start < 19 and embedded.offsets[0, t, 1] > start]
    assert len(pieces) > 1
    expected = (embedded.tokens[0, pieces] @ frames.T).mean(0)
    torch.testing.assert_close(alignment.similarity[2], expected)


@pytest.mark.parametrize("text", ["", " ?! ", [], ["", "..."]])
def test_map_rejects_text_without_words(text):
    with pytest.raises(ValueError, match="at least one word"):
        similarity_map(FakeModel(), clip("dog"), text)


def test_score_counts_best_frames_inside_events():
    events = [
        Event("a.wav", "dog", "dog", 0.0, 0.2),  # right: both best frames are inside
        Event("a.wav", "engine", "an engine", 0.0, 0.1),  # wrong: the best frame is the fourth
        Event("b.wav", "bell", "bells", 0.0, 0.1),  # belongs to another clip
        Event("a.wav", "rain", "rain", 0.0, 0.1),  # no caption contains it
    ]
    result = score(SCENE, events)
    assert result["right"] == 50
    assert result["phrases"] == 2 and result["left_out"] == 1
    # Frames inside the first event: 0.05, 0.15, and, within half a frame, 0.25. Inside the second: 0.05 and 0.15.
    assert result["chance"] == pytest.approx(100 * (3 / 5 + 2 / 5) / 2)


@pytest.mark.parametrize(("start", "right"), [(0.39, 100), (0.401, 0)])
def test_score_has_a_tolerance_of_half_a_frame(start, right):
    event = Event("a.wav", "engine", "engine", start, 0.5)  # the frame of the engine is centered at 0.35
    assert score(SCENE, [event])["right"] == right


def test_score_needs_every_tied_frame_inside():
    assert score(SCENE, [Event("a.wav", "dog", "dog", 0.0, 0.04)])["right"] == 0
    assert score(("",) * 5, [Event("a.wav", "dog", "dog", 0.0, 0.3)])["right"] == 0


def test_score_groups_events_with_the_same_phrase():
    events = [Event("a.wav", "dog", "dog", 0.4, 0.5), Event("a.wav", "dog", "DOG", 0.0, 0.2)]
    assert score(SCENE, events)["right"] == 100
    assert score(SCENE, events)["phrases"] == 1


def test_score_uses_the_best_word_of_a_phrase():
    mixed = clip("dog", "bell")
    # The second frame is closest to the mean of the two words, but others are closer to each word alone.
    mixed.frames[1] = (mixed.frames[0] + mixed.frames[1]) / 2**0.5
    event = Event("a.wav", "x", "bell dog", 0.0, 0.04)
    result = alignment_score(FakeModel(), {"a.wav": mixed}, {"a.wav": ["bell dog"]}, [event])
    assert result["right"] == 100


def test_score_without_events_and_with_nan():
    assert np.isnan(score(SCENE, [])["right"])
    broken = clip(*SCENE)
    broken.frames[2, 0] = float("nan")
    with pytest.raises(ValueError, match=r"'dog'.*a.wav is NaN"):
        alignment_score(FakeModel(), {"a.wav": broken}, {"a.wav": ["dog"]}, [Event("a.wav", "", "dog", 0, 1)])


def test_the_models_mode_is_restored():
    for training in (True, False):
        model = FakeModel().train(training)
        similarity_map(model, clip("dog"), "dog")
        assert model.training is training


def write_scene(folder, name="clip one é.wav", scene=SCENE):
    path = folder / "audio" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound(*scene), RATE)
    return path


def test_align_writes_figure_and_csv(tmp_path):
    audio = write_scene(tmp_path)
    lines = ["file_name,event,phrase,start,end", "audio/clip one é.wav,dog,a dog,0.0,0.2", "other.wav,dog,dog,0,1"]
    (tmp_path / "events.csv").write_text("\n".join(lines), encoding="utf-8")
    out = tmp_path / "new" / "map.png"
    alignment = align(FakeModel(), audio, CAPTION, out)
    assert alignment.similarity[1].tolist() == [1, 1, 0, 0, 0]
    with out.with_suffix(".csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["word", "0.050", "0.150", "0.250", "0.350", "0.450"]
    assert [row[0] for row in rows[1:]] == alignment.words
    values = np.array([row[1:] for row in rows[1:]], dtype=float)
    np.testing.assert_allclose(values, alignment.similarity.numpy(), atol=1e-6)
    with Image.open(out) as image:
        assert image.format == "PNG" and image.width >= 1000 and image.height >= 500


@pytest.mark.slow
def test_figure_shows_scores_and_events_in_the_right_place(tmp_path):
    """The best cells (yellow) are to the left of the others, and the color of events appears only with events."""
    alignment = similarity_map(FakeModel(), clip("dog", "", "", "", ""), ["dog"])
    mel = torch.zeros(10, 16)
    plain, marked = tmp_path / "plain.png", tmp_path / "marked.png"
    align_figure(plain, mel, alignment, 0.5)
    align_figure(marked, mel, alignment, 0.5, [Event("a.wav", "dog", "dog", 0.0, 0.1)])
    pixels = np.asarray(Image.open(plain).convert("RGB")).astype(int)
    yellow = np.abs(pixels - (253, 231, 37)).sum(2) < 10
    dark = np.abs(pixels - (68, 1, 84)).sum(2) < 10
    columns = yellow.sum(0) > 50
    columns[int(0.9 * len(columns)) :] = False  # the color bar
    dark_columns = np.flatnonzero(dark.sum(0) > 50)
    assert columns.any() and np.flatnonzero(columns).max() < dark_columns[: int(0.9 * len(dark_columns))].min() + 3
    orange = (255, 127, 14)
    count = [(np.asarray(Image.open(path).convert("RGB")) == orange).all(2).sum() for path in (plain, marked)]
    assert count[0] == 0 and count[1] > 500


def test_figure_takes_any_text(tmp_path):
    """Dollar signs and braces are not typeset as math, and a long title is wrapped."""
    text = "costs $5_x} and $6^{ " + "dog " * 60
    alignment = similarity_map(FakeModel(), clip("dog", ""), text)
    events = [Event("a.wav", "money", "$5_x", 0.0, 0.1)]
    table = align_figure(tmp_path / "a.png", torch.zeros(4, 8), alignment, 0.2, events, title=text)
    assert table == tmp_path / "a.csv"
    assert table.read_text().splitlines()[2].startswith("$5_x,")
    with Image.open(tmp_path / "a.png") as image:
        assert image.width == 1500


def test_align_of_a_long_file_in_windows(tmp_path):
    audio = write_scene(tmp_path, scene=("dog", "", "", "bell", "", "engine", "dog"))
    alignment = align(FakeModel(), audio, ["dog", "engine"], tmp_path / "a.png", clip_seconds=0.3)
    assert alignment.similarity.tolist() == [[1, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1, 0]]
    assert alignment.times.tolist() == pytest.approx([0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65])
    short = align(FakeModel(), audio, ["dog"], tmp_path / "a.png", clip_seconds=0.3, longest=0.4)
    assert short.times.tolist() == pytest.approx([0.05, 0.15, 0.25, 0.35])


def test_align_names_a_bad_file(tmp_path):
    (tmp_path / "bad.wav").write_text("no audio")
    with pytest.raises(AudioError, match=r"bad\.wav"):
        align(FakeModel(), tmp_path / "bad.wav", "dog", tmp_path / "a.png")


def test_find_events(tmp_path):
    audio = write_scene(tmp_path, "a.wav")
    assert find_events(audio) == []
    table = tmp_path / "events.csv"
    table.write_text("phrase,file_name,event,start,end\na dog,audio/a.wav,dog,0.5,1\nit,b.wav,dog,0,1\n")
    expected = [Event("audio/a.wav", "dog", "a dog", 0.5, 1.0)]
    assert find_events(audio) == find_events(audio, table) == expected
    assert find_events(write_scene(tmp_path, "c.wav")) == []
    with pytest.raises(ValueError, match=r"events.csv lists no event of .*c.wav"):
        find_events(tmp_path / "audio" / "c.wav", table)


@pytest.mark.parametrize(
    ("reader", "text", "message"),
    [
        (read_events, "file_name,event,start,end\na,b,0,1", "lacks the column phrase"),
        (read_events, "file_name,event,phrase,start,end\na,b,c,0,1\na,b,c,x,1", "line 3: start and end.*'x'"),
        (
            read_events,
            "file_name,event,phrase,start,end\na,b,c,2,1",
            "line 2: .* 0 <= start <= end, both finite, got 2.0 and 1.0",
        ),
        (read_events, "file_name,event,phrase,start,end\na,b, ,0,1", "line 2: phrase is empty"),
        (read_events, "file_name,event,phrase,start,end\na,b,c,0", "line 2: start and end"),
        (read_tags, "file_name,dog\na,2", "line 2: tags must be 0 or 1, got 2"),
        (read_tags, "file_name\na", "a column for each tag"),
        (read_tags, "file_name,dog", "at least one line"),
        (read_twins, "file_name\na", "lacks the column twin"),
    ],
)
def test_malformed_tables_are_refused(tmp_path, reader, text, message):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"table.csv.*{message}"):
        reader(path)
    with pytest.raises(ValueError, match=r"none.csv is missing"):
        reader(tmp_path / "none.csv")
