"""Everything that holds a model to use: functions that write one to a folder and return it and its tokenizer."""

from support.published_models import Laion, MsClap, clap_folder
from support.tiny_clap import tiny_clap


def saved(folder):
    tiny_clap().save_pretrained(folder / "saved")
    return folder / "saved", None


def run(folder):
    tiny_clap().save_pretrained(folder / "run" / "checkpoints" / "last")
    (folder / "run" / "config.yaml").write_text("clip_seconds: 0.5\n")
    return folder / "run", None


def checkpoint(folder):
    return run(folder)[0] / "checkpoints" / "last", None


def clap_model(folder):
    clap_folder(folder / "clap")
    return folder / "clap", None


def laion(folder):
    published = Laion(folder)
    return published.file, str(published.tokenizer)


def fused(folder):
    published = Laion(folder, fusion=True)
    return published.file, str(published.tokenizer)


def msclap(folder):
    published = MsClap(folder)
    return published.file, str(published.tokenizer)


SOURCES = {function.__name__: function for function in (run, checkpoint, saved, clap_model, laion, fused, msclap)}
SECONDS = {"run": 0.5, "checkpoint": 0.5, "saved": 9.91, "msclap": 7.0} | dict.fromkeys(
    ("clap_model", "laion", "fused"), 10.0
)
