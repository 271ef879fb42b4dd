"""Imported by the fork server of `WorkerContext` alone, for its effect on that process."""

from atk.data.workers import shield_server

shield_server()
