"""SPIDEr-FL and FENSE with small stand-ins for the published models, against their definitions."""

import sys

import pytest
import torch

from atk.eval import caption_metrics, fluency
from atk.eval.caption_metrics import _add_fluency, _Scores
from atk.eval.java import UnavailableError
from atk.models.tokenizer import import_transformers

transformers = import_transformers()
CAPTIONS = ["A dog barks.", "rain rain falls", "wind"]
REFERENCES = [["a dog barks", "a dog is barking"], ["rain falls"], ["a low tone", "wind", "birds"]]


@pytest.fixture(autouse=True)
def models_folder(tmp_path, monkeypatch):
    """A folder for the models of FENSE, and no other place for them."""
    monkeypatch.setenv("FENSE_DATA", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    caches = (fluency._detector, fluency._sentence_model)
    for cache in caches:
        cache.cache_clear()
    yield tmp_path
    for cache in caches:
        cache.cache_clear()


def write_bert(folder):
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *["a", "dog", "barks", "is", "barking", "rain", "falls", "wind", "low", "tone"],
    ]
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    bert = transformers.BertModel(config).eval()
    bert.save_pretrained(folder)
    return bert


@pytest.fixture
def detector(models_folder):
    """The encoder and the classifier of a detector, with weights so large that its probabilities differ."""
    bert = write_bert(models_folder / "tiny-bert")
    classifier = torch.nn.Linear(16, 6)
    torch.nn.init.normal_(classifier.weight, std=8)
    state = {f"encoder.{name}": value for name, value in bert.state_dict().items()}
    state |= {f"clf.{name}": value for name, value in classifier.state_dict().items()}
    state["encoder.embeddings.position_ids"] = torch.arange(512)[None]  # as in the published file
    checkpoint = {"model_type": "tiny-bert", "num_classes": 6, "state_dict": state}
    torch.save(checkpoint, models_folder / fluency._DETECTOR)
    return bert, classifier


@torch.no_grad()
def error_probabilities(detector, folder):
    bert, classifier = detector
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tiny-bert")
    tokens = tokenizer(["a dog barks", "rain rain falls", "wind"], padding="max_length", max_length=64)
    vectors = bert(**{name: torch.tensor(value) for name, value in tokens.items()}).last_hidden_state[:, 0]
    return classifier(vectors).sigmoid()[:, -1]


def test_captions_with_errors_lose_nine_tenths(detector, models_folder, monkeypatch):
    probabilities = error_probabilities(detector, models_folder)
    threshold = float(probabilities.sort().values[:2].mean())  # one caption below, two above
    monkeypatch.setattr(fluency, "_THRESHOLD", threshold)
    monkeypatch.setattr(fluency, "_BATCH", 2)
    expected = [0.1 if probability > threshold else 1.0 for probability in probabilities.tolist()]
    assert sorted(expected) == [0.1, 0.1, 1.0]
    factors = fluency.fluency_factors(CAPTIONS)
    assert factors == pytest.approx(expected)
    scores = _Scores()
    scores.clips = {"CIDEr": [1.0, 0.5, 0.2], "SPICE": [0.2, 0.3, 0.0]}
    scores.values = {"SPIDEr": 0.0}
    monkeypatch.setattr(caption_metrics, "fense", lambda *_: [0.5, 0.25, 0.0])
    _add_fluency(scores, CAPTIONS, REFERENCES)
    spider = [0.6, 0.4, 0.1]
    assert scores.values["SPIDEr-FL"] == pytest.approx(sum(s * f for s, f in zip(spider, expected, strict=True)) / 3)
    assert scores.values["FENSE"] == 0.25 and scores.missing == {}


@pytest.mark.slow
def test_fense_is_the_mean_cosine_times_the_fluency(models_folder):
    library = pytest.importorskip("sentence_transformers")
    folder = models_folder / "paraphrase-TinyBERT-L6-v2"
    write_bert(folder)
    model = library.SentenceTransformer(str(folder))  # mean pooling, as the published model
    factors = [1.0, 0.1, 1.0]
    expected = []
    for caption, group, factor in zip(CAPTIONS, REFERENCES, factors, strict=True):
        vector, *others = (torch.tensor(model.encode(text)) for text in (caption, *group))
        cosines = [float(torch.cosine_similarity(vector, other, 0)) for other in others]
        expected.append(factor * sum(cosines) / len(cosines))
    assert fluency.fense(CAPTIONS, REFERENCES, factors) == pytest.approx(expected, abs=1e-5)


def test_what_is_missing_is_named_in_one_line(detector, models_folder, monkeypatch):
    scores = _Scores()
    scores.values = {"SPIDEr": 0.0}
    scores.clips = {"CIDEr": [0.0] * 3, "SPICE": [0.0] * 3}
    _add_fluency(scores, CAPTIONS, REFERENCES)
    assert "SPIDEr-FL" in scores.values and "paraphrase-TinyBERT-L6-v2 is neither in" in scores.missing["FENSE"]
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UnavailableError, match="pip install sentence-transformers"):
        fluency.fense(CAPTIONS, REFERENCES, [1.0] * 3)
    (models_folder / "tiny-bert").rename(models_folder / "other")
    fluency._detector.cache_clear()
    with pytest.raises(UnavailableError, match=r"tiny-bert is neither in .* nor in the cache") as error:
        fluency.fluency_factors(CAPTIONS)
    assert "\n" not in str(error.value)
    (models_folder / fluency._DETECTOR).write_bytes(b"")
    with pytest.raises(UnavailableError, match=r"\.ckpt is damaged; download https"):
        fluency.fluency_factors(CAPTIONS)
    (models_folder / fluency._DETECTOR).unlink()
    scores = _Scores()
    _add_fluency(scores, CAPTIONS, REFERENCES)
    assert scores.missing["FENSE"] == scores.missing["SPIDEr-FL"]
    assert f"{fluency._DETECTOR} is missing; download https" in scores.missing["FENSE"]
