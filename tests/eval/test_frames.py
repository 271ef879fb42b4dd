"""The embeddings of many clips are kept in a file and compared in blocks."""

import pytest
import torch
from support.peak_memory import peak_growth
from support.tiny_clap import tiny_clap

from atk.eval import retrieval, scores
from atk.eval.embed import CaptionEmbedding, ClipEmbedding, embed_tokens
from atk.eval.frames import TensorFile, on_disk
from atk.eval.retrieval import SplitEmbedding, text_similarity
from atk.eval.scores import similarities

LENGTHS = (4, 0, 3, 9, 1)


def clips():
    torch.manual_seed(0)
    unit = torch.nn.functional.normalize
    return [
        ClipEmbedding(unit(torch.randn(8), dim=0), unit(torch.randn(length, 8), dim=1), torch.arange(length) * 0.1)
        for length in LENGTHS
    ]


def test_frames_on_disk_are_those_in_memory():
    expected = clips()
    mapped = on_disk((str(index), clip) for index, clip in enumerate(expected))
    assert [name for name, _ in mapped] == list("01234")
    for (_, ours), theirs in zip(mapped, expected, strict=True):
        assert all(torch.equal(*values) for values in zip(ours, theirs, strict=True))
    frames = [clip.frames for _, clip in mapped if len(clip.frames)]
    assert len({values.untyped_storage().data_ptr() for values in frames}) == 1  # of one file
    empty = on_disk([("a", expected[1])])
    assert empty[0][1].frames.shape == (0, 8)


EMBED = """
from atk.eval.embed import ClipEmbedding
from atk.eval.frames import on_disk

def step(size):
    embedded = ((index, ClipEmbedding(torch.rand(512), torch.rand(64, 512), torch.rand(64))) for index in range(size))
    step.result = on_disk(embedded)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_clips():
    assert peak_growth(EMBED, 2000, "cpp") < 40  # MB; the frames take 262


def test_a_full_disk_names_the_folder_of_the_frames():
    file = TensorFile()
    file._file = open("/dev/full", "w+b")  # noqa: SIM115, PTH123 (a device)
    file.add(torch.ones(1, 8))  # in a buffer
    with pytest.raises(OSError, match=r"embeddings cannot be written there \(.*No space left.*\); TMPDIR can name"):
        file.mapped()


@pytest.mark.parametrize("score", ["max_mean", "both"])
def test_blocks_of_clips_and_texts_change_no_score(monkeypatch, score):
    model, audio = tiny_clap(), clips()
    files = [str(index) for index in range(len(audio))]
    pooled = torch.stack([clip.pooled for clip in audio])
    by_file = dict(zip(files, audio, strict=True))
    split = SplitEmbedding(None, files, [()] * len(audio), pooled, by_file, [], [], [])
    texts = ["a dog barks", "rain", "a bell rings twice", "rain falls", "an engine"]
    expected = similarities(audio, embed_tokens(model, texts), score)
    sizes = []
    compare = scores.max_mean_similarity_varlen

    def counted(frames, tokens, *offsets):
        sizes.append((len(frames), len(offsets[1]) - 1))
        return compare(frames, tokens, *offsets)

    monkeypatch.setattr(scores, "max_mean_similarity_varlen", counted)
    monkeypatch.setattr(scores, "_FRAMES", 5)
    monkeypatch.setattr(retrieval, "_TEXTS", 2)
    torch.testing.assert_close(text_similarity(model, split, texts, score), expected, rtol=0, atol=1e-6)
    # Clips of 4 + 0, 3, 9 (alone above the limit), and 1 frames, for 2, 2, and 1 texts.
    assert sizes == [(rows, count) for count in (2, 2, 1) for rows in (4, 3, 9, 1)]


def test_a_single_clip_without_frames_scores_zero():
    caption = CaptionEmbedding(torch.ones(8), torch.ones(2, 8), [], torch.zeros(2, 2))
    assert similarities([clips()[1]], [caption], "max_mean").tolist() == [[0.0]]
