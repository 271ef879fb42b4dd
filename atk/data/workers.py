"""Worker processes and a fork server that survive a SIGTERM to the trainer's process group (Unix)."""

import signal
from multiprocessing import current_process, popen_forkserver, util
from multiprocessing.context import ForkServerContext, ForkServerProcess


class KilledPopen(popen_forkserver.Popen):
    """Process whose `terminate` kills it: workers ignore SIGTERM, so the interpreter would hang at exit."""

    def terminate(self) -> None:
        """Kill the process."""
        self.kill()


class Worker(ForkServerProcess):
    """Data-loading worker. Like its fork server, it ignores SIGTERM, which torchrun sends to whole sessions."""

    _Popen = KilledPopen


class WorkerContext(ForkServerContext):
    """Starts clean workers instead of forks of a process with threads, locks, and a CUDA context.

    Python has a single fork server. If other code started it first, it is not shielded and a SIGTERM ends it.
    """

    Process = Worker

    def __init__(self):
        # Preloaded once in the server, so that each worker starts in milliseconds.
        self.set_forkserver_preload(["atk.data.dataset", "atk.data.fork_server"])


def shield_server() -> None:
    """Make this fork server ignore SIGTERM; if it died, the trainer would lose track of all workers."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Blocked as well, so that a SIGTERM to another child of this server stays pending until the child has started.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    util.register_after_fork(Worker, _restore_sigterm)


def _restore_sigterm(worker: type[Worker]) -> None:
    """Restore SIGTERM in processes that are not data-loading workers."""
    if not isinstance(current_process(), worker):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
