"""An index of synthetic recordings: size, time to build and to update, latency of searches, recall of two stages.

    python benchmarks/index.py FOLDER --hours 100 --dim 128 --rate 20     # writes and searches FOLDER/index
    python benchmarks/index.py FOLDER --engines                            # engines for nearest global vectors

Frames are drawn from a mixture. Each recording has a background and one to four events; a background is one of 64
directions, an event one of 2,000, which themselves lie around 100 directions. An event lasts a tenth to a half of the
recording. A frame is the direction of its event, or else of the background, plus noise with the given share of the
energy, half of which is shared by all frames of the event in this recording. The global vector is the mean of the
frames plus noise. A query has two events: five tokens near each of them, and four near a direction that all queries
share; its global vector is the mean of its events plus noise.
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from atk.eval.embed import CaptionEmbedding
from atk.eval.index import Index
from atk.eval.index_parts import DTYPES, Row
from atk.eval.index_store import Header, writing

Hits = list[tuple[float, Path | str]]
_EVENTS, _GROUPS, _BACKGROUNDS = 2000, 100, 64


class Sounds:
    """The directions that frames and tokens lie around.

    Args:
        dim: width of the vectors.
        noise: share of a frame's energy that is noise.
        pooled_noise: share of a global vector's energy that is noise.
    """

    def __init__(self, dim: int, noise: float, pooled_noise: float):
        self.dim, self.noise, self.pooled_noise = dim, noise, pooled_noise
        self.generator = torch.Generator().manual_seed(0)
        groups = self.normal(_GROUPS)
        self.events = self.near(groups[torch.arange(_EVENTS) % _GROUPS], 0.7)
        self.backgrounds, self.filler = self.normal(_BACKGROUNDS), self.normal(1)

    def normal(self, count: int) -> Tensor:
        """Random directions `[count, D]`."""
        return F.normalize(torch.randn(count, self.dim, generator=self.generator), dim=-1)

    def near(self, rows: Tensor, noise: float) -> Tensor:
        """Directions around others, with a share of the energy replaced by noise."""
        return F.normalize((1 - noise) ** 0.5 * rows + noise**0.5 * self.normal(len(rows)), dim=-1)

    def integer(self, below: int) -> int:
        """A random integer."""
        return int(torch.randint(below, (1,), generator=self.generator))

    def recording(self, name: str, frames: int, rate: float) -> Row:
        """A recording."""
        clean = self.near(self.backgrounds[self.integer(_BACKGROUNDS)][None], self.noise / 2).repeat(frames, 1)
        for _ in range(1 + self.integer(4)):
            length = max(1, frames // 10 + self.integer(4 * frames // 10))
            first = self.integer(frames - length + 1)
            clean[first : first + length] = self.near(self.events[self.integer(_EVENTS)][None], self.noise / 2)
        vectors = self.near(clean, self.noise / 2)
        pooled = self.near(vectors.mean(0, keepdim=True) / vectors.mean(0).norm(), self.pooled_noise)[0]
        times = (torch.arange(frames).double() + 0.5) / rate
        return Row(name.encode(), True, frames, 0, frames / rate, pooled, times, vectors.half())

    def query(self) -> CaptionEmbedding:
        """A query."""
        events = self.events[[self.integer(_EVENTS), self.integer(_EVENTS)]]
        tokens = self.near(torch.cat([events[:1].repeat(5, 1), events[1:].repeat(5, 1), self.filler.repeat(4, 1)]), 0.3)
        pooled = self.near(F.normalize(events.sum(0, keepdim=True), dim=-1), self.pooled_noise)[0]
        return CaptionEmbedding(pooled, tokens, [], torch.zeros(len(tokens), 2))


def rows(sounds: Sounds, count: int, frames: int, rate: float, first: int = 0) -> Iterator[Row]:
    """Recordings, every hundredth of which is sixty times as long as the others."""
    for place in range(first, first + count):
        yield sounds.recording(f"{place:07d}.wav", frames * (60 if place % 100 == 99 else 1), rate)


def spent(function: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock and CPU seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu


def latency(search: Callable[[CaptionEmbedding], object], queries: list[CaptionEmbedding]) -> dict[str, float]:
    """Median and 95th percentile of the wall-clock time of a query, and the median CPU time, in seconds."""
    search(queries[0])
    times = [spent(lambda query=query: search(query)) for query in queries]
    wall = sorted(wall for wall, _ in times)
    cpu = statistics.median(cpu for _, cpu in times)
    return {"p50": statistics.median(wall), "p95": wall[int(0.95 * (len(wall) - 1))], "cpu": cpu}


def build(sounds: Sounds, out: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Write the index, then replace one recording in a hundred."""
    frames = round(arguments.seconds * arguments.rate)
    count = round(arguments.hours * 3600 / arguments.seconds / 1.59)  # long ones count 60 times
    header = Header("synthetic", None, "", "/", arguments.dtype, 10.0, None, 1 / arguments.rate, "max_mean")
    times = []
    with writing(out, header) as writer:
        recordings = rows(sounds, count, frames, arguments.rate)
        times += [spent(lambda row=row: writer.add(row)) for row in recordings]
        times.append(spent(lambda: (writer.flush(), writer.compact())))
    replaced = [row._replace(size=-1) for row in rows(sounds, count // 100, frames, arguments.rate)]

    def update() -> None:
        with writing(out, header) as writer:
            for row in replaced:
                writer.add(row)
            writer.flush()
            writer.compact()

    size = sum(path.stat().st_size for path in out.iterdir())
    wall, cpu = (sum(column) for column in zip(*times, strict=True))
    changed, changed_cpu = spent(update)
    return {
        "recordings": count,
        "GB": size / 1e9,
        "write_s": wall,
        "write_cpu_s": cpu,
        "update_s": changed,
        "update_cpu_s": changed_cpu,
    }


def recall(exact: list[Hits], two_stage: list[Hits]) -> float:
    """Share of the exact ten best recordings that two stages find."""
    pairs = zip(exact, two_stage, strict=True)
    shared = sum(len({path for _, path in best} & {path for _, path in mine}) for best, mine in pairs)
    return shared / (10 * len(exact))


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Everything about an index."""
    out = Path(arguments.folder) / "index"
    sounds = Sounds(arguments.dim, arguments.noise, arguments.pooled_noise)
    result: dict[str, object] = {"setting": vars(arguments)}
    if not out.exists():
        result["build"] = build(sounds, out, arguments)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result["open_s"] = spent(lambda: Index.open(out))[0]
    index = Index.open(out)
    result["frames"] = sum(part.live_frames() for part in index.parts)
    queries = [sounds.query() for _ in range(arguments.queries)]
    many = queries[: max(1, arguments.queries // 3)]
    result["exact"] = latency(lambda query: index.search_vectors([query], score="max_mean", exact=True), many)
    exact = index.search_vectors(queries, score="max_mean", exact=True)
    for candidates in arguments.candidates:
        timed = latency(
            lambda query, count=candidates: index.search_vectors([query], score="max_mean", candidates=count), queries
        )
        hits = index.search_vectors(queries, score="max_mean", candidates=candidates)
        result[f"two_stage_{candidates}"] = timed | {"recall@10": recall(exact, hits)}
    result["global"] = latency(lambda query: index.search_vectors([query], score="global"), queries)
    result["memory_GB"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 2**20
    return result


def engines(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Time and recall at 100 of engines for the nearest global vectors, next to comparing all of them."""
    sounds = Sounds(arguments.dim, arguments.noise, arguments.pooled_noise)
    mixed = sounds.events[torch.randint(_EVENTS, (arguments.vectors, 3), generator=sounds.generator)].sum(1)
    vectors = sounds.near(F.normalize(mixed, dim=-1), 0.3)
    queries = [sounds.query() for _ in range(arguments.queries)]
    truth = [set((vectors @ query.pooled).topk(100).indices.tolist()) for query in queries]
    result = {}
    for name, make in (("all", _all), ("usearch", _usearch), ("faiss", _faiss)):
        searches: list[Callable[[Tensor], np.ndarray]] = []
        wall, cpu = spent(lambda make=make, searches=searches: searches.append(make(vectors)))
        [search] = searches
        timed = latency(lambda query, search=search: search(query.pooled), queries)
        hits = [len(best & set(search(query.pooled).tolist())) for best, query in zip(truth, queries, strict=True)]
        result[name] = {"build_s": wall, "build_cpu_s": cpu, **timed, "recall@100": sum(hits) / 100 / len(queries)}
    return result


def _all(vectors: Tensor) -> Callable[[Tensor], np.ndarray]:
    return lambda query: (vectors @ query).topk(100).indices.numpy()


def _usearch(vectors: Tensor) -> Callable[[Tensor], np.ndarray]:
    from usearch.index import Index as Graph  # pyrefly: ignore[missing-import]

    graph = Graph(ndim=vectors.shape[1], metric="ip", dtype="f16")
    graph.add(np.arange(len(vectors)), vectors.numpy(), threads=torch.get_num_threads())
    return lambda query: graph.search(query.numpy(), 100).keys.astype(np.int64)


def _faiss(vectors: Tensor) -> Callable[[Tensor], np.ndarray]:
    import faiss  # pyrefly: ignore[missing-import]

    faiss.omp_set_num_threads(torch.get_num_threads())
    graph = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efSearch = 128
    graph.add(vectors.numpy())
    return lambda query: graph.search(query[None].numpy(), 100)[1][0]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where the index is written, or searched if it exists")
    parser.add_argument("--hours", type=float, default=100)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--rate", type=float, default=20, help="frames per second")
    parser.add_argument("--seconds", type=float, default=10, help="length of most recordings")
    parser.add_argument("--noise", type=float, default=0.5)
    parser.add_argument("--pooled_noise", type=float, default=0.3)
    parser.add_argument("--dtype", choices=DTYPES, default="int8")
    parser.add_argument("--queries", type=int, default=30)
    parser.add_argument("--candidates", type=int, nargs="+", default=[100, 300, 1000, 3000])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--engines", action="store_true")
    parser.add_argument("--vectors", type=int, default=100_000, help="global vectors for the engines")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(json.dumps(engines(arguments) if arguments.engines else measure(arguments), indent=2))


if __name__ == "__main__":
    main()
