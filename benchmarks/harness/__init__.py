"""Benchmarks of the ops and of whole training steps: `atk bench` (installed as `atk.bench`)."""

from atk.bench.measure import Case, Provider, Row, compare
from atk.bench.report import Table, environment, markdown

__all__ = ["Case", "Provider", "Row", "Table", "compare", "environment", "markdown"]
