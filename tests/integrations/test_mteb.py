"""mteb: MaxSim of its models, and a CLAP on a made-up audio retrieval and reranking task."""

import types

import numpy as np
import pytest
import torch
from support.integrations import library, our_ops_run
from support.tiny_clap import tiny_clap

from atk.integrations import mteb as adapter

pytestmark = pytest.mark.exhaustive  # the library takes many seconds to import


@pytest.fixture(scope="module")
def functions():
    return library("mteb.similarity_functions")


@pytest.mark.parametrize("ragged", [False, True])
def test_scores_are_those_of_the_library_without_padding(functions, ragged):
    queries = [torch.randn(length if ragged else 5, 16) - 0.2 for length in (3, 1, 6)]
    documents = [torch.randn(length if ragged else 7, 16) - 0.2 for length in (4, 2, 9)]
    expected = torch.cat([torch.cat([functions.max_sim(q, d) for d in documents], 1) for q in queries])
    pairs = functions.pairwise_max_sim(queries, documents)
    inputs = (queries, documents) if ragged else (torch.stack(queries), torch.stack(documents).numpy())
    with adapter.install(), our_ops_run():
        torch.testing.assert_close(functions.max_sim(*inputs), expected)
        torch.testing.assert_close(functions.pairwise_max_sim(*inputs), pairs)
    assert functions.max_sim is not adapter.max_sim


def test_models_with_maxsim_use_our_scores(functions):
    abstract = library("mteb.models.abs_encoder")
    encoder = type("Encoder", (abstract.AbsEncoder,), {"encode": None})()
    encoder.mteb_model_meta = types.SimpleNamespace(similarity_fn_name=abstract.ScoringFunction.MAX_SIM)
    queries, documents = torch.randn(3, 5, 16), torch.randn(4, 7, 16)
    expected = encoder.similarity(queries, documents)
    with adapter.install(), our_ops_run():
        torch.testing.assert_close(encoder.similarity(queries, documents), expected)
        encoder.similarity_pairwise(queries, documents[:3])


class Loader(list):
    """Batches of a data set with the columns of `rows`, collated as a DataLoader does."""

    def __init__(self, rows):
        super().__init__([rows[:2], rows[2:]])
        self.dataset = types.SimpleNamespace(features=list(rows[0]))
        self.collate_fn = lambda rows: {key: [row[key] for row in rows] for key in rows[0]}

    def __iter__(self):
        return map(self.collate_fn, super().__iter__())


def test_alignment_of_audio_and_text(functions):
    PromptType = library("mteb.types").PromptType
    clap = tiny_clap()
    encoder = adapter.AlignedEncoder(clap)
    draw = np.random.default_rng(0)
    clips = [draw.standard_normal(length).astype(np.float32) for length in (4000, 9000, 6000)]
    captions = ["a dog barks", "rain falls", "a bell rings", "a dog rings a bell"]
    task = {"task_metadata": types.SimpleNamespace(name="Made up"), "hf_split": "test", "hf_subset": "default"}
    audio_rows = [{"audio": {"array": clip, "sampling_rate": clap.sample_rate}} for clip in clips]
    text_rows = [{"text": caption} for caption in captions]
    with torch.no_grad():
        frames, tokens = encode_all(clap, clips), clap.embed_text(captions)
        expected = torch.stack([aligned(clip, tokens) for clip in frames])

    audio = encoder.encode(Loader(audio_rows), **task, prompt_type=PromptType.query)
    text = encoder.encode(Loader(text_rows), **task, prompt_type=PromptType.document)
    with our_ops_run():
        torch.testing.assert_close(encoder.similarity(audio, text), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder.similarity_pairwise(audio, text[:3]), expected.diagonal(), atol=1e-5, rtol=1e-4)

    text = encoder.encode(Loader(text_rows), **task, prompt_type=PromptType.query)
    audio = encoder.encode(Loader(audio_rows), **task, prompt_type=PromptType.document)
    torch.testing.assert_close(encoder.similarity(text, audio), expected.T, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder.similarity(text[1][None], audio), expected.T[1:2], atol=1e-5, rtol=1e-4)

    audio, text = encoder.encode(Loader(audio_rows), **task), encoder.encode(Loader(text_rows), **task)
    torch.testing.assert_close(encoder.similarity(audio, text), expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="Made up: items must have audio or text, got both"):
        encoder.encode(Loader([{**one, **other} for one, other in zip(audio_rows, text_rows, strict=False)]), **task)


def encode_all(clap, clips):
    """Valid frames of each clip, encoded alone."""
    return [clap.embed_audio(torch.tensor(clip)[None], torch.tensor([len(clip)])).frames[0] for clip in clips]


def aligned(frames, tokens):
    """Equation (3.6) of one clip and all captions, in a loop."""
    rows = zip(tokens.tokens, tokens.mask, strict=True)
    return torch.stack([(frames @ caption[mask].T).amax(1).mean() for caption, mask in rows])


def made_up_task(queries, corpus, category):
    """A retrieval task of mteb, in which row i of the queries belongs to row i of the corpus; category: as in "a2t"."""
    retrieval = library("mteb.abstasks.retrieval")
    Dataset = library("datasets").Dataset
    names = {"a": "audio", "t": "text"}
    modalities = list(dict.fromkeys(names[side] for side in category.split("2")))

    class MadeUp(retrieval.AbsTaskRetrieval):
        metadata = library("mteb.abstasks.task_metadata").TaskMetadata(
            name=f"MadeUp{category.upper()}", description="made up", dataset={"path": "made/up", "revision": "1"},
            type="Any2AnyRetrieval" if "a" in category else "Retrieval", category=category, modalities=modalities,
            eval_splits=["test"], eval_langs=["eng-Latn"], main_score="hit_rate_at_1",
        )  # fmt: skip

        def load_data(self, *_, **__):
            relevant = {str(i): {str(i): 1} for i in range(len(queries))}
            split = {
                name: Dataset.from_list([{"id": str(i), **row} for i, row in enumerate(rows)])
                for name, rows in (("queries", queries), ("corpus", corpus))
            }
            self.dataset = {"default": {"test": split | {"relevant_docs": relevant, "top_ranked": None}}}
            self.data_loaded = True

    return MadeUp()


@pytest.mark.parametrize("audio_queries", [True, False], ids=["a2t", "t2a"])
def test_a_whole_evaluation(functions, audio_queries):
    evaluate = library("mteb").evaluate
    clap = tiny_clap()
    draw = np.random.default_rng(0)
    clips = [draw.standard_normal(length).astype(np.float32) for length in (4000, 9000, 6000, 7000)]
    captions = ["a dog barks", "rain falls", "a bell rings", "a dog rings a bell"]
    with torch.no_grad():
        tokens = clap.embed_text(captions)
        scores = torch.stack([aligned(clip, tokens) for clip in encode_all(clap, clips)])
    scores = scores if audio_queries else scores.T
    expected = (scores.argmax(1) == torch.arange(4)).float().mean().item()
    audio = [{"audio": {"array": clip, "sampling_rate": clap.sample_rate}} for clip in clips]
    text = [{"text": caption} for caption in captions]
    task = made_up_task(audio, text, "a2t") if audio_queries else made_up_task(text, audio, "t2a")
    with our_ops_run():
        result = evaluate(adapter.AlignedEncoder(clap), task, cache=None, co2_tracker=False, show_progress_bar=False)
    (scored,) = result.task_results[0].scores["test"]
    assert scored["main_score"] == scored["hit_rate_at_1"] == pytest.approx(expected)
    ranks = (scores > scores.diagonal()[:, None]).sum(1) + 1
    assert scored["mrr_at_10"] == pytest.approx((1 / ranks).mean().item(), abs=1e-4)


def token_vectors(texts, length):
    """Vectors of the words of each text, repeated up to one length, which is the same for all texts."""
    words = [text.split() for text in texts]
    generators = [[torch.Generator().manual_seed(sum(word.encode())) for word in row] for row in words]
    rows = [torch.stack([torch.randn(16, generator=draw) for draw in row]) for row in generators]
    return torch.stack([row.repeat(length, 1)[:length] for row in rows])


def test_metrics_of_a_model_with_maxsim_are_the_same(functions):
    """A late-interaction model in a whole evaluation, without and with our scores."""
    abstract = library("mteb.models.abs_encoder")
    description = {"name": "made/up", "modalities": ["text"], "embed_dim": 16}
    metadata = library("mteb.models.model_meta").ModelMeta.create_empty(description)
    texts = ["a dog barks", "rain falls on a roof", "a bell rings", "a dog rings a bell"]
    questions = ["what dog barks", "rain on what", "bell", "dog bell"]

    class Encoder(abstract.AbsEncoder):
        mteb_model_meta = metadata.create_empty(
            {"name": "made/up", "modalities": ["text"], "embed_dim": 16}
        ).model_copy(update={"similarity_fn_name": abstract.ScoringFunction.MAX_SIM})

        def encode(self, inputs, **_):
            return token_vectors([text for batch in inputs for text in batch["text"]], 6)

    def evaluated():
        task = made_up_task([{"text": text} for text in questions], [{"text": text} for text in texts], "t2t")
        result = library("mteb").evaluate(Encoder(), task, cache=None, co2_tracker=False, show_progress_bar=False)
        (scored,) = result.task_results[0].scores["test"]
        return {key: value for key, value in scored.items() if isinstance(value, float)}

    with our_ops_run(expected=False):
        expected = evaluated()
    assert len(expected) > 5 and expected["main_score"] > 0
    with adapter.install(), our_ops_run():
        assert evaluated() == pytest.approx(expected, nan_ok=True)
