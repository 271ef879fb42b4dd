"""Word vectors in place of a text encoder: which words are looked up, means, unknown words, saving, and errors."""

import dataclasses

import pytest
import torch
from support.tiny_clap import CONFIG

from atk.data.side_files import Event
from atk.eval.alignment import alignment_score, similarity_map
from atk.eval.embed import ClipEmbedding
from atk.models.clap import CLAP
from atk.models.export import export_model
from atk.models.text import TextEncoderConfig
from atk.models.word_vectors import WordVectors

VECTORS = {
    "the": [1, 1, 1], "of": [2, 2, 2], "rock": [1, 0, 0], "hip-hop": [0, 1, 0], "n": [0, 0, 1], "roll": [3, 0, 0],
    "AC": [0, 5, 0], "piano": [0, 0, 4],
}  # fmt: skip


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("".join(f"{word} {' '.join(map(str, values))}\n" for word, values in VECTORS.items()))
    return path


def settings(path, **options):
    return TextEncoderConfig(vectors=str(path), vocabulary=1, **options)


def encoder(path, captions=("rock hip-hop", "Rock'n'Roll", "AC piano"), **options):
    return WordVectors.create(settings(path, **options), captions)


def test_captions_are_means_of_the_words_that_have_a_vector(file):
    text = encoder(file)
    tokens = text.tokenize(["Rock, HIP-HOP unheard!", "rock'n'roll", "unheard", "piano_AC rock."])
    pooled, vectors, mask, offsets = text(tokens)
    expected = [[0.5, 0.5, 0], [4 / 3, 0, 1 / 3], [0, 0, 0], [1 / 3, 5 / 3, 4 / 3]]
    torch.testing.assert_close(pooled, torch.tensor(expected))
    assert mask.sum(1).tolist() == [2, 3, 1, 3]
    torch.testing.assert_close(vectors[0, :2], torch.tensor([[1.0, 0, 0], [0, 1, 0]]))
    assert offsets[0, :2].tolist() == [[0, 4], [6, 13]] and offsets[2].tolist()[0] == [0, 0]
    assert torch.equal(tokens["special_tokens_mask"], 1 - tokens["attention_mask"])
    assert text.tokenize(["rock " * 9])["input_ids"].shape == (1, 9)
    assert encoder(file, max_tokens=3).tokenize(["rock " * 9])["input_ids"].shape == (1, 3)


def test_the_words_of_the_captions_and_the_first_ones_of_the_file_are_kept(file, capsys):
    assert encoder(file).words == ["the", "rock", "hip-hop", "n", "roll", "AC", "piano"]
    assert not capsys.readouterr().err
    encoder(file, ["rock", "a loud piano", "loud"])
    assert capsys.readouterr().err == "text.vectors: 2 of 4 words have no vector: a, loud\n"
    lines = file.read_text()
    file.write_text(f"{len(VECTORS)} 3\n{lines}")  # the header of word2vec
    assert encoder(file, ["rock"]).words == ["the", "rock"]


@pytest.mark.parametrize("trained", [False, True])
def test_a_model_with_word_vectors_saves_its_vectors(file, tmp_path, trained):
    config = dataclasses.replace(CONFIG, text=settings(file, train_vectors=trained))
    model = CLAP.create(config, ["rock piano", "hip-hop"]).eval()
    captions = ["rock", "unheard", "piano, rock"]
    text = model.embed_text(captions)
    assert text.pooled.isfinite().all()
    model.encode_text(model.tokenize(captions)).pooled.sum().backward()
    weight = model.text_encoder.table.weight
    assert weight.requires_grad == trained
    if trained:
        assert weight.grad[1:].any() and not weight.grad[0].any()
    model.save_pretrained(tmp_path / "model")
    file.unlink()
    again = CLAP.from_pretrained(tmp_path / "model")
    assert torch.equal(again.embed_text(captions).pooled, text.pooled)
    assert again.text_encoder.words == model.text_encoder.words
    assert again.text_encoder.table.weight.requires_grad == trained
    with pytest.raises(ValueError, match="word vectors have no tokenizer to export"):
        export_model(model, tmp_path / "exported", "onnx")


def test_phrases_without_a_vector_are_left_out_of_the_alignment(file):
    model = CLAP.create(dataclasses.replace(CONFIG, text=settings(file)), ["rock piano", "hip-hop"]).eval()
    frames = torch.nn.functional.normalize(torch.randn(5, CONFIG.dim), dim=1)
    clip = ClipEmbedding(frames[0], frames, torch.arange(5.0))
    captions = {"a.wav": ["unheard"], "b.wav": ["rock"]}
    events = [Event(name, "music", texts[0], 0.0, 1.0) for name, texts in captions.items()]
    result = alignment_score(model, dict.fromkeys(captions, clip), captions, events)
    assert (result["phrases"], result["left_out"]) == (1, 1)
    with pytest.raises(ValueError, match="text contains no word that the tokenizer keeps: 'unheard'"):
        similarity_map(model, clip, "unheard")


def test_what_they_cannot_do_is_said(file):
    text = encoder(file)
    with pytest.raises(ValueError, match="reserve must be 0, as word vectors take no pseudo-tokens, got 2"):
        text.tokenize(["rock"], reserve=2)
    with pytest.raises(ValueError, match="pseudo_tokens must be None for word vectors"):
        text(text.tokenize(["rock"]), torch.zeros(1, 1, 3))
    with pytest.raises(ValueError, match="only one of pretrained and vectors can be set"):
        TextEncoderConfig(pretrained="bert-base-uncased", vectors=str(file))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b"rock 1 2\nroll 1\n",
            "could not convert string to float: 'roll'|line 2 has no 2 finite numbers after a word",
        ),
        (b"rock 1 x\n", "could not convert string to float: 'x'"),
        (b"rock 1 nan\n", "line 1 has no 2 finite numbers"),
        (b"rock\n", "line 1 has no 0 finite numbers"),
        (b"\xff\xfe\n", "can't decode"),
        (None, "No such file"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path, content, reason):
    path = tmp_path / "vectors.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(
        ValueError, match=f"text.vectors: .*vectors.txt: not a file of word vectors.*({reason})"
    ) as error:
        encoder(path, ["rock", "roll"])
    assert "\n" not in str(error.value)


def test_a_file_without_a_word_of_the_captions_is_refused(file):
    with pytest.raises(ValueError, match=r"vectors\.txt has no word of the captions"):
        encoder(file, ["nothing else"])
