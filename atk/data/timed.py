"""The timed captions of a data set, from its events.csv."""

from collections.abc import Collection

from atk.data.sets import DataSets
from atk.data.side_files import Event, read_events, read_if_ours
from atk.data.timed_texts import TimedCaption


def timed_captions(
    data: DataSets, files: Collection[str]
) -> tuple[dict[str, tuple[TimedCaption, ...]], list[tuple[str, str]]]:
    """The timed captions of each file: its events with the same phrase, ignoring case, are the spans of one caption.

    Args:
        data: data sets, whose events.csv are read if they have any.
        files: the file names, as in `data.read("train")`; events of other files are ignored.

    Returns:
        The captions by file name, and the (file name, reason) of events that were left out.

    Raises:
        ValueError: as for `read_events`.
    """
    listed = set(files)
    spans: dict[str, dict[str, list[Event]]] = {}
    left_out: list[tuple[str, str]] = []
    for data_set in data.sets:
        for event in read_if_ours(data_set.folder / "events.csv", read_events):
            name = event.file_name if len(data.sets) == 1 else data_set.named(event.file_name)
            if name not in listed:
                continue
            if event.end > event.start:
                spans.setdefault(name, {}).setdefault(event.phrase.lower(), []).append(event)
            else:
                left_out.append((name, f"{event.phrase!r} has no duration"))
    captions = {
        name: tuple(
            TimedCaption(events[0].phrase, tuple((event.start, event.end) for event in events))
            for events in phrases.values()
        )
        for name, phrases in spans.items()
    }
    return captions, left_out
