"""Compares a run with a saved one."""

from collections.abc import Sequence

from atk.bench.measure import OK, Row
from atk.bench.report import Table

SLACK_MIB = 8.0  # smaller growth of memory is allocator noise


def regressions(tables: Sequence[Table], saved: Sequence[Table], threshold: float) -> tuple[list[str], int]:
    """Regressions of atk's own rows, one line each, and the number of rows compared.

    A row is a regression if it no longer runs or is no longer correct, if its time has grown by more than the factor
    `threshold` both in milliseconds and relative to the hardware limit measured in the same run (a busy or slow machine
    slows down both), or if its memory has grown by more than that factor.
    """
    saved_rows = {(table.key, row.provider): (row, table.rows[-1]) for table in saved for row in table.rows}
    lines, compared = [], 0
    for table in tables:
        for row in table.rows:
            if not row.provider.startswith("atk ") or (table.key, row.provider) not in saved_rows:
                continue
            before, limit = saved_rows[table.key, row.provider]
            if before.status != OK:
                continue
            compared += 1
            slowdown = table.rows[-1].ms / limit.ms
            if change := _regression(row, before, slowdown, threshold):
                lines.append(f"{table.title}: {row.provider}: {change}")
    return lines, compared


def _regression(row: Row, before: Row, slowdown: float, threshold: float) -> str:
    """What got worse, or an empty string; `slowdown` is the limit's time now relative to its saved time."""
    if row.status != OK:
        return f"{row.status} ({row.note})"
    changes = []
    now_ms, before_ms = row.ms, before.ms
    factor = now_ms / before_ms
    if min(factor, factor / slowdown) > threshold:
        changes.append(f"{before_ms:.2f} ms before, {now_ms:.2f} ms now ({factor:.2f}x)")
    if row.peak_mib is not None and before.peak_mib is not None:
        growth = row.peak_mib - before.peak_mib
        if growth > SLACK_MIB and row.peak_mib > threshold * before.peak_mib:
            changes.append(f"{before.peak_mib:.1f} MiB before, {row.peak_mib:.1f} MiB now")
    return ", ".join(changes)
