"""The data sets and files that the recipes name, and which of them the user has."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from atk.data.remote import is_url

DATA = {
    "ecals": "ECALS, as `atk data import` writes it, with multiquery.csv",
    "clotho": "Clotho, as a data set with train, val, and test",
    "audiocaps": "AudioCaps, as a data set with train, val, and test",
    "esc50": "folder of ESC-50, whose clips are mixed into those of Clotho",
    "audioset": "folder of audio or tar shards: AudioSet without captions",
    "clotho_audio": "folder of the training clips of Clotho, which are used without captions",
    "audiocaps_audio": "folder of the training clips of AudioCaps, which are used without captions",
}
WEIGHTS = {
    "msclap": "CLAP_weights_2023.pth of MS-CLAP",
    "laion": "checkpoint of LAION-CLAP: a .pt file, or a folder or hub repository of a ClapModel",
    "tclap": "checkpoint of T-CLAP, in a form that `atk evaluate` takes",
    "cnn14": "Cnn14_mAP=0.431.pth of PANNs",
    "glove": "text file of GloVe vectors, such as glove.6B.300d.txt",
    "bert": "BERT",
    "bart": "tokenizer of BART",
    "gpt2": "tokenizer of GPT-2",
    "roberta": "tokenizer of RoBERTa",
}
HUB = {"bert": "bert-base-uncased", "bart": "facebook/bart-base", "gpt2": "gpt2", "roberta": "roberta-base"}


def parse_sources(words: Iterable[str], known: Mapping[str, str], option: str) -> dict[str, str]:
    """Paths by name from words NAME=PATH.

    Args:
        words: the words after an option.
        known: what the names are.
        option: the option, for errors.

    Raises:
        ValueError: a word is not NAME=PATH, or the name is unknown or given twice.
        FileNotFoundError: a path of a data set does not exist.
    """
    paths: dict[str, str] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if name not in known or not equals or not path:
            raise ValueError(f"{option} takes NAME=PATH with a name among {', '.join(known)}, got {word!r}")
        if name in paths:
            raise ValueError(f"{option}: {name} is given twice, {paths[name]!r} and {path!r}")
        if known is DATA and not is_url(path) and "{" not in path and not Path(path).exists():
            raise FileNotFoundError(f"{option}: {name}: {path} does not exist")
        paths[name] = path
    return paths


def check_weights(sources: Mapping[str, str]) -> None:
    """Check that the weights whose paths look like files or folders exist; other names may be repositories of the hub.

    Raises:
        FileNotFoundError: one doesn't.
    """
    for name, path in sources.items():
        is_path = path.startswith(("/", "./", "../")) or Path(path).suffix in (".pt", ".pth", ".txt")
        if name in WEIGHTS and is_path and not Path(path).exists():
            raise FileNotFoundError(f"--weights: {name}: {path} does not exist")


def missing(names: Iterable[str], sources: Mapping[str, str]) -> list[str]:
    """The options that would name what is missing, such as `--data clotho=PATH`."""
    return [f"--{'data' if name in DATA else 'weights'} {name}=PATH" for name in names if name not in sources]
