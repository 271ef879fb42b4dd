"""Preloaded by the fork server of `WorkerContext`, for its side effect on that process."""

from atk.data.workers import shield_server

shield_server()
