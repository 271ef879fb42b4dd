"""A process that imports the library once and forks for each request: `processes.py` sends them."""

import contextlib
import gc
import importlib
import json
import os
import sys

PRELOADED = (
    "atk.cli.commands", "atk.cli.main", "atk.train.aligned", "atk.train.difference", "atk.train.semisupervised",
    "schedulefree", "soundfile", "torch.distributed", "torch.nn.parallel", "torch.utils.tensorboard",
)  # fmt: skip


def serve() -> None:
    """Answer each line of stdin with a line on stdout: a process id, or the exit code of a process."""
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with contextlib.suppress(ImportError):
        from atk.models.tokenizer import import_transformers

        # Both load much more than `import transformers` does.
        import_transformers().BertModel, import_transformers().PreTrainedTokenizerFast
    gc.collect()
    gc.freeze()  # children neither scan nor copy what has been imported
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            print(json.dumps(exit_code(request["wait"])), flush=True)
        elif pid := os.fork():
            print(json.dumps(pid), flush=True)
        else:
            return run(**request)
    return None


def exit_code(pid: int) -> int | None:
    """The exit code of a process, or None while it runs."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def run(function: str, arguments: list, environment: dict[str, str], output: str) -> None:
    """Call `module:function` in this process, with stdout and stderr in the file `output`."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(environment)
    module, _, name = function.partition(":")
    getattr(importlib.import_module(module), name)(*arguments)
