"""What an index stores, and what a search in it finds."""

import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import atk
from atk.eval import index_store
from atk.eval.embed import CaptionEmbedding, ClipEmbedding
from atk.eval.index import Index
from atk.eval.index_parts import Part, Queries, Row, write_part
from atk.eval.index_store import Header, writing
from atk.eval.scores import similarities

DIM = 16
HEADER = Header("model", None, "f", "/nowhere", "int8", 10.0, None, 0.1, "max_mean")


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def row(name, length, seed=0):
    frames, times = unit(length, DIM, seed=seed), torch.arange(length).double() / 10
    pooled = F.normalize(frames.sum(0), dim=0) if length else unit(DIM)
    return Row(name.encode(), True, length, seed, length / 10, pooled, times, frames.half())


def text(length, seed):
    tokens = unit(length, DIM, seed=1000 + seed)
    pooled = F.normalize(tokens.sum(0), dim=0) if length else unit(DIM, seed=seed)
    return CaptionEmbedding(pooled, tokens, [], torch.zeros(length, 2))


def store(folder, rows, dtype="int8"):
    with writing(folder, replace(HEADER, dtype=dtype)) as writer:
        for each in rows:
            writer.add(each)
    return Index.open(folder)


@pytest.mark.parametrize(("dtype", "error"), [("int8", 0.01), ("float16", 0.001)])
def test_a_part_returns_what_was_written(tmp_path, dtype, error):
    rows = [row("a", 5, 1), row("b", 0, 2)._replace(name=b"\xff.wav"), row("c", 30_000, 3)]
    write_part(tmp_path / "p.arrow", rows, dtype)
    part = Part(tmp_path / "p.arrow", [1])
    assert len(part) == 3 and part.live.tolist() == [True, False, True] and part.live_frames() == 30_005
    for place, before in enumerate(rows):
        after = part.row(place)
        assert after[:5] == before[:5] and torch.equal(after.times, before.times)
        assert torch.equal(after.pooled, before.pooled)
        assert (after.frames - before.frames).abs().max() <= error if len(before.frames) else True
    queries = Queries(torch.cat([text(3, 0).tokens, text(4, 1).tokens]), torch.tensor([0, 3, 3, 7], dtype=torch.int32))
    clips = [ClipEmbedding(each.pooled, each.frames.float(), each.times) for each in rows]
    expected = similarities(clips, [text(3, 0), text(0, 2), text(4, 1)], "max_mean")
    torch.testing.assert_close(part.scores(queries), expected, rtol=0, atol=error / 2)
    chosen = torch.tensor([0, 2])
    torch.testing.assert_close(part.scores(queries, chosen), expected[chosen], rtol=0, atol=error / 2)


def test_recordings_without_frames_score_0(tmp_path):
    index = store(tmp_path / "i", [row("a", 0)])
    assert index.search_vectors([text(3, 1)], score="max_mean")[0] == [(0.0, Path("/nowhere/a"))]


def test_errors_of_int8_do_not_add_up_when_parts_are_merged(tmp_path):
    store(tmp_path / "i", [row("a", 50, 1)])
    for seed in range(2, 8):
        with writing(tmp_path / "i", HEADER) as writer:
            writer.add(row(f"b{seed}", 20, seed))
            writer.flush()
            writer.compact()
    index = Index.open(tmp_path / "i")
    assert len(index.parts) == 1 and len(index) == 7
    errors = (index.frames("/nowhere/a").frames - row("a", 50, 1).frames).abs()
    assert (errors <= 0.75 * index.parts[0].scales + 1e-4).all()  # half a step, and half of half a step


def test_merging_parts_holds_few_of_them_in_memory(tmp_path, monkeypatch):
    with writing(tmp_path / "i", HEADER) as writer:
        for place in range(30):
            writer.add(row(f"{place}", 10, place))
            writer.flush()
        held, peak = [], 0

        def counted(path, rows, dtype):
            nonlocal peak
            held.extend(weakref.ref(each.frames) for each in rows)
            peak = max(peak, sum(frames() is not None for frames in held))
            write_part(path, rows, dtype)

        monkeypatch.setattr(index_store, "_PART_FRAMES", 50)
        monkeypatch.setattr(index_store, "write_part", counted)
        writer.compact()
    assert len(held) == 30 and peak <= 10
    index = Index.open(tmp_path / "i")
    assert len(index.parts) == 6 and sorted(path.name for path in index.paths()) == sorted(map(str, range(30)))


@pytest.mark.parametrize("score", ["global", "max_mean", "both"])
def test_search_ranks_as_all_frames_do(tmp_path, score, monkeypatch):
    monkeypatch.setattr(index_store, "_PART_FRAMES", 100)
    rows = [row(f"{place:03d}", 1 + place % 23, place) for place in range(120)]
    index = store(tmp_path / "i", rows, "float16")
    assert len(index.parts) > 5
    queries = [text(3, 1), text(5, 2)]
    clips = [ClipEmbedding(each.pooled, each.frames.float(), each.times) for each in rows]
    expected = similarities(clips, queries, score).topk(10, dim=0)
    exact = index.search_vectors(queries, score=score, exact=True)
    two_stage = index.search_vectors(queries, score=score, candidates=120)
    assert exact == two_stage
    for hits, values, order in zip(exact, expected.values.T, expected.indices.T, strict=True):
        assert [str(path) for _, path in hits] == [f"/nowhere/{place:03d}" for place in order.tolist()]
        torch.testing.assert_close(torch.tensor([value for value, _ in hits]), values, rtol=0, atol=1e-3)
    few = index.search_vectors(queries, score=score, candidates=1, top=3)
    by_vectors = index.search_vectors(queries, score="global", top=3)
    assert [{path for _, path in hits} for hits in few] == [{path for _, path in hits} for hits in by_vectors]
    assert index.search_vectors(queries, score=score, top=500)[0][-1][0] > -1.0


@pytest.mark.slow
def test_qdrant_ranks_as_the_op_does(tmp_path):
    qdrant = pytest.importorskip("qdrant_client")
    from atk.eval.index_export import copy_to, export_to_qdrant

    rows = [row(f"{place}.wav", 3 + place, place) for place in range(8)]
    index = store(tmp_path / "i", rows, "float16")
    assert export_to_qdrant(index, str(tmp_path / "q"), "sounds") == 8
    client = qdrant.QdrantClient(":memory:")
    assert copy_to(client, index, "sounds") == 8
    with writing(tmp_path / "i", replace(HEADER, dtype="float16")) as writer:
        writer.drop([b"0.wav"])
    assert copy_to(client, Index.open(tmp_path / "i"), "sounds") == 7
    assert client.count("sounds").count == 7
    with writing(tmp_path / "empty", HEADER):
        pass
    empty = Index.open(tmp_path / "empty")
    assert copy_to(client, empty, "others") == 0 and not client.collection_exists("others")
    empty.folder = index.folder  # as if nothing were left of it
    assert copy_to(client, empty, "sounds") == 0 and client.count("sounds").count == 0
    assert copy_to(client, Index.open(tmp_path / "i"), "sounds") == 7
    query = text(4, 0)
    points = client.query_points("sounds", query=query.tokens.tolist(), using="frames", limit=3).points
    packed = torch.cat([each.frames.float() for each in rows[1:]])
    cu = torch.tensor([0, *(len(each.frames) for each in rows[1:])]).cumsum(0).int()
    scores = atk.max_mean_similarity_varlen(packed, query.tokens, cu, torch.tensor([0, 4]).int(), direction="text")
    best = scores[:, 0].topk(3)
    assert [point.payload["file"] for point in points] == [
        f"/nowhere/{place + 1}.wav" for place in best.indices.tolist()
    ]
    assert [point.score / 4 for point in points] == pytest.approx(best.values.tolist(), abs=1e-3)
    assert points[0].payload["start"] == pytest.approx(-0.05)
