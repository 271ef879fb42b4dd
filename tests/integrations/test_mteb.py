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


def made_up_task(clips, captions, rate, audio_queries):
    """A retrieval task of mteb, in which clip i belongs to caption i."""
    retrieval = library("mteb.abstasks.retrieval")
    Dataset = library("datasets").Dataset
    directions = ("a2t", ["audio", "text"]) if audio_queries else ("t2a", ["text", "audio"])
    audio = [{"id": str(i), "audio": {"array": clip, "sampling_rate": rate}} for i, clip in enumerate(clips)]
    text = [{"id": str(i), "text": caption} for i, caption in enumerate(captions)]

    class MadeUp(retrieval.AbsTaskRetrieval):
        metadata = library("mteb.abstasks.task_metadata").TaskMetadata(
            name=f"MadeUp{directions[0].upper()}", description="made up", dataset={"path": "made/up", "revision": "1"},
            type="Any2AnyRetrieval", category=directions[0], modalities=directions[1], eval_splits=["test"],
            eval_langs=["eng-Latn"], main_score="hit_rate_at_1",
        )  # fmt: skip

        def load_data(self, *_, **__):
            queries, corpus = (audio, text) if audio_queries else (text, audio)
            relevant = {str(i): {str(i): 1} for i in range(len(clips))}
            split = {"queries": Dataset.from_list(queries), "corpus": Dataset.from_list(corpus)}
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
    task = made_up_task(clips, captions, clap.sample_rate, audio_queries)
    with our_ops_run():
        result = evaluate(adapter.AlignedEncoder(clap), task, cache=None, co2_tracker=False, show_progress_bar=False)
    (scored,) = result.task_results[0].scores["test"]
    assert scored["main_score"] == scored["hit_rate_at_1"] == pytest.approx(expected)
    ranks = (scores > scores.diagonal()[:, None]).sum(1) + 1
    assert scored["mrr_at_10"] == pytest.approx((1 / ranks).mean().item(), abs=1e-4)
