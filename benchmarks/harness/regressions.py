"""Compares a run with a saved one."""

from collections.abc import Sequence

from atk.bench.measure import OK
from atk.bench.report import Table

SLACK_MIB = 8.0  # memory below which a growth is the allocator's


def regressions(tables: Sequence[Table], saved: Sequence[Table], threshold: float) -> tuple[list[str], int]:
    """What atk's own rows have lost, a line each, and how many rows were compared.

    A row has lost when it no longer runs or is right, when its time has grown by more than the factor `threshold`,
    absolutely and relative to the limit measured beside it (a busy or slower machine slows both), or its memory has.
    """
    old = {(table.key, row.provider): (row, table.rows[-1]) for table in saved for row in table.rows}
    lines, compared = [], 0
    for table in tables:
        for row in table.rows:
            before, limit = old.get((table.key, row.provider), (None, None))
            if before is None or not row.provider.startswith("atk ") or before.status != OK:
                continue
            compared += 1
            loss = _loss(row, before, table.rows[-1].median_ms / limit.median_ms, threshold)
            if loss:
                lines.append(f"{table.title}: {row.provider}: {loss}")
    return lines, compared


def _loss(row, before, machine: float, threshold: float) -> str:
    """What was lost, or an empty string; `machine`: factor by which the limit takes longer."""
    if row.status != OK:
        return f"{row.status} ({row.note})"
    losses = []
    slower = row.median_ms / before.median_ms
    if min(slower, slower / machine) > threshold:
        losses.append(f"{before.median_ms:.2f} ms before, {row.median_ms:.2f} ms now ({slower:.2f}x)")
    if row.peak_mib is not None and before.peak_mib is not None:
        more = row.peak_mib - before.peak_mib
        if more > SLACK_MIB and row.peak_mib > threshold * before.peak_mib:
            losses.append(f"{before.peak_mib:.1f} MiB before, {row.peak_mib:.1f} MiB now")
    return ", ".join(losses)
