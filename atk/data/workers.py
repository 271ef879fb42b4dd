"""Worker processes that a SIGTERM to the trainer's process group does not end, nor their fork server (Unix)."""

import signal
from multiprocessing import current_process, popen_forkserver, util
from multiprocessing.context import ForkServerContext, ForkServerProcess


class KilledPopen(popen_forkserver.Popen):
    """A process that `terminate` kills: workers ignore SIGTERM, and the interpreter's end would wait for them."""

    def terminate(self) -> None:
        """Kill it."""
        self.kill()


class Worker(ForkServerProcess):
    """A loader's worker: as its server, it goes on through a SIGTERM, which torchrun sends to whole sessions."""

    _Popen = KilledPopen


class WorkerContext(ForkServerContext):
    """Starts workers clean, not as a fork of a process that holds threads, locks and a CUDA context.

    Where other code has started Python's one fork server before, it lacks the preparation and a SIGTERM ends it.
    """

    Process = Worker

    def __init__(self):
        # Imported once in the server, so that each worker starts in milliseconds.
        self.set_forkserver_preload(["atk.data.dataset", "atk.data.fork_server"])


def shield_server() -> None:
    """Keep this fork server through SIGTERM: with it the trainer would lose sight of all workers."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Blocked too, so that a process of other code that is told to end while it starts does so once it has.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    util.register_after_fork(Worker, _give_back)


def _give_back(worker: type[Worker]) -> None:
    """Let SIGTERM end processes that are not loaders' workers."""
    if not isinstance(current_process(), worker):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
