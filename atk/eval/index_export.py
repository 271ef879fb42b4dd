"""Copy an index to a vector database that compares multivectors itself."""

import os
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from atk.data.progress import progress_bar
from atk.data.remote import is_url
from atk.eval.index import Index
from atk.extras import optional_imports

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

_LARGEST = 1 << 20  # values in a multivector that Qdrant takes
_BATCH_VALUES = 1 << 21  # in a request


def check_qdrant() -> None:
    """Check that the client is installed.

    Raises:
        ImportError: it is not.
    """
    with optional_imports:
        import qdrant_client  # noqa: F401


def export_to_qdrant(index: Index, place: str, collection: str, progress: str | None = None) -> int:
    """Copy an index to a collection of Qdrant, which is created if needed.

    Points have the vectors "global" and "frames", a multivector compared by MaxSim, and the payload `file`, `start`,
    and `end` in seconds. MaxSim is the sum over tokens of the best frame: `direction="text"` of
    `atk.max_mean_similarity`, times the number of tokens. Long recordings become several points. Points of an earlier
    export of the same index are replaced or removed, others stay.

    Args:
        index: what to copy.
        place: URL of a server, or folder of a local database, or ":memory:".
        collection: name of the collection.
        progress: label of a progress bar; None = no bar.

    Returns:
        The number of points.

    Raises:
        ImportError: qdrant-client is missing.
        ValueError: the server cannot be used, or the collection has other vectors.
    """
    with optional_imports:
        from qdrant_client import QdrantClient
        from qdrant_client.http.exceptions import ApiException

    try:
        client = QdrantClient(url=place) if is_url(place) else QdrantClient(path=place)
        try:
            return copy_to(client, index, collection, progress)
        finally:
            client.close()
    except (ApiException, RuntimeError) as error:  # RuntimeError: the folder is open in another process
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"to: {place} cannot be written ({reason})") from None


def copy_to(client: "QdrantClient", index: Index, collection: str, progress: str | None = None) -> int:
    """As `export_to_qdrant`, through an open client."""
    from qdrant_client import models

    exists = client.collection_exists(collection)
    if not index.parts and not exists:
        return 0
    dim = index.parts[0].frames.shape[1] if index.parts else 0
    if not exists:
        frames = models.VectorParams(
            size=dim,
            distance=models.Distance.DOT,
            multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
            hnsw_config=models.HnswConfigDiff(m=0),  # for ranking candidates, which needs no graph
            on_disk=True,
        )
        pooled = models.VectorParams(size=dim, distance=models.Distance.DOT)
        client.create_collection(collection, vectors_config={"global": pooled, "frames": frames})
    origin = os.path.abspath(index.folder)  # noqa: PTH100 (resolve() would follow links)
    export = uuid.uuid4().hex
    count = 0
    batch: list[models.PointStruct] = []
    values = 0
    for name, vectors, payload in progress_bar(_points(index), progress, unit="point"):
        point = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{origin} {name}"))
        batch.append(
            models.PointStruct(id=point, vector=vectors, payload=payload | {"index": origin, "export": export})
        )
        values += len(vectors["frames"]) * dim
        count += 1
        if values >= _BATCH_VALUES:
            client.upsert(collection, batch)
            batch, values = [], 0
    if batch:
        client.upsert(collection, batch)
    mine = models.FieldCondition(key="index", match=models.MatchValue(value=origin))
    current = models.FieldCondition(key="export", match=models.MatchValue(value=export))
    client.delete(collection, models.FilterSelector(filter=models.Filter(must=[mine], must_not=[current])))
    return count


def _points(index: Index) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, vectors, and payload of each point."""
    half = index.header.frame_seconds / 2
    for path, pooled, part, first, end in index.rows():
        step = max(1, _LARGEST // part.frames.shape[1])
        for low in range(first, end, step):
            high = min(low + step, end)
            start, stop = float(part.times[low]) - half, float(part.times[high - 1]) + half
            vectors = {"global": pooled.tolist(), "frames": part.decoded(low, high).tolist()}
            payload = {"file": str(path).encode("utf-8", "backslashreplace").decode(), "start": start, "end": stop}
            yield f"{path} {low - first}", vectors, payload
