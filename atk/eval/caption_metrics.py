"""Captioning metrics of the published evaluation code (pycocoevalcap), and what each of them still needs."""

import importlib.util
import json
import math
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Timer

METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "SPICE", "SPIDEr")

_GET_LIBRARY = "pip install 'audio-text-kernels[captioning]'"
_GET_JAVA = "apt-get install default-jre-headless"
_GET_JARS = "pip install --force-reinstall --no-deps pycocoevalcap"
_GET_MODELS = "python -m pycocoevalcap.spice.get_stanford_models"
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_CONTRACTION = re.compile(r"(?<=\w)(n't|'(?:s|re|ve|ll|d|m))\b|(?<=\bcan)(?=not\b)")
_TOKEN = re.compile(r"n't\b|'(?:s|re|ve|ll|d|m)\b|\w+(?:[-/.]\w+|[,:]\d+)*|[^\w\s]")

_Tokens = list[str]  # captions whose tokens are separated by single spaces


@dataclass(frozen=True)
class CaptionScores:
    """Scores of a set of captions.

    Args:
        values: metric -> score as the literature prints it: fractions (BLEU-4 of 1.0 is a perfect match), CIDEr up to
            10; those of `METRICS` that could be computed, in that order.
        missing: metric -> what it lacks and the command that gets it, or why it failed.
        tokenizer: what cut the captions into words; scores by different tokenizers can differ a little.
    """

    values: dict[str, float]
    missing: dict[str, str]
    tokenizer: str


class _UnavailableError(Exception):
    """A metric or tokenizer cannot be run; the message says why."""


def caption_metrics(
    candidates: Sequence[str], references: Sequence[Sequence[str]], *, time_limit: float = 600.0
) -> CaptionScores:
    """BLEU-1..4, METEOR, ROUGE-L, CIDEr, SPICE and SPIDEr of captions against the references of their clips.

    BLEU, ROUGE-L and CIDEr need pycocoevalcap alone, METEOR also Java, SPICE also Java and Stanford CoreNLP's models,
    and `SPIDEr = (CIDEr + SPICE) / 2`. Nothing is downloaded: what cannot be computed is named in `missing`, the rest
    still is computed. Captions are cut into words by the Penn Treebank tokenizer of the published code; without Java
    by Python in its convention (lower case, contractions split, punctuation dropped). CIDEr weighs words by how few
    clips use them, so it is 0 for a single clip.

    Args:
        candidates: one caption a clip; it may be empty.
        references: the captions that people gave each clip, one or more, as many lists as candidates.
        time_limit: seconds that each Java process may take.

    Raises:
        TypeError: a caption is not a string, or the references of a clip are one string.
        ValueError: no clip, numbers that differ, or a clip whose references are all blank.
    """
    _check(candidates, references)
    try:
        from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS
    except ImportError:
        return CaptionScores({}, dict.fromkeys(METRICS, f"pycocoevalcap is not installed; {_GET_LIBRARY}"), "none")
    texts = [" ".join(text.split()) for text in (*candidates, *(text for group in references for text in group))]
    tokens, tokenizer = _tokenize(texts, frozenset(PUNCTUATIONS), time_limit)
    rest = iter(tokens[len(candidates) :])
    truth = [[next(rest) for _ in group] for group in references]
    values, missing = _scores(tokens[: len(candidates)], truth, time_limit)
    return CaptionScores(values, missing, tokenizer)


def _check(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    for name, value in (("candidates", candidates), ("references", references)):
        if isinstance(value, str):
            raise TypeError(f"{name} must be a list with an entry for each clip, got a string")
    if len(candidates) != len(references) or not len(candidates):
        raise ValueError(
            "candidates and references must hold the same number of clips, one at least, got "
            f"{len(candidates)} and {len(references)}"
        )
    for clip, (candidate, group) in enumerate(zip(candidates, references, strict=True)):
        if not isinstance(candidate, str):
            raise TypeError(f"candidates[{clip}] must be a string, got {type(candidate).__name__}")
        if isinstance(group, str) or not all(isinstance(text, str) for text in group):
            raise TypeError(f"references[{clip}] must be a list of strings, got {group!r}")
        if not any(text.strip() for text in group):
            raise ValueError(f"references[{clip}] must hold one caption or more, got {list(group)!r}")


def _scores(candidates: _Tokens, references: list[_Tokens], time_limit: float) -> tuple[dict, dict]:
    """The values and what is missing, both by metric."""
    values, missing = {}, {}

    def compute(names: Sequence[str], metric: Callable[..., list[float]], *options: float) -> None:
        try:
            scores = metric(candidates, references, *options)
            if not all(map(math.isfinite, scores)):
                raise _UnavailableError("the score is not a finite number")
            values.update(zip(names, map(float, scores), strict=True))
        except _UnavailableError as reason:
            missing.update(dict.fromkeys(names, str(reason)))

    compute(METRICS[:4], _bleu)
    compute(("METEOR",), _meteor, time_limit)
    compute(("ROUGE-L",), _rouge)
    compute(("CIDEr",), _cider)
    compute(("SPICE",), _spice, time_limit)
    if "CIDEr" in values and "SPICE" in values:
        values["SPIDEr"] = (values["CIDEr"] + values["SPICE"]) / 2
    else:
        missing["SPIDEr"] = "needs " + " and ".join(name for name in ("CIDEr", "SPICE") if name in missing)
    return values, missing


def _by_clip(candidates: _Tokens, references: list[_Tokens]) -> tuple[dict, dict]:
    """References and candidates as pycocoevalcap's scorers take them."""
    return dict(enumerate(references)), {clip: [text] for clip, text in enumerate(candidates)}


def _bleu(candidates: _Tokens, references: list[_Tokens]) -> list[float]:
    from pycocoevalcap.bleu.bleu import Bleu

    return Bleu(4).compute_score(*_by_clip(candidates, references), verbose=0)[0]


def _rouge(candidates: _Tokens, references: list[_Tokens]) -> list[float]:
    from pycocoevalcap.rouge.rouge import Rouge

    return [Rouge().compute_score(*_by_clip(candidates, references))[0]]


def _cider(candidates: _Tokens, references: list[_Tokens]) -> list[float]:
    from pycocoevalcap.cider.cider import Cider

    if not any(text for group in references for text in group):
        raise _UnavailableError("no reference holds a word")
    return [Cider().compute_score(*_by_clip(candidates, references))[0]]


def _meteor(candidates: _Tokens, references: list[_Tokens], time_limit: float) -> list[float]:
    """METEOR 1.5 in the dialogue of its jar: statistics of each clip first, then one score of them all."""
    jar = _jar("meteor", "meteor-1.5.jar", _GET_JARS)
    with _java(["-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"], time_limit) as process:

        def ask(*fields: str) -> None:
            process.stdin.write(" ||| ".join(fields) + "\n")
            process.stdin.flush()

        def answer() -> str:
            if line := process.stdout.readline():
                return line.strip()
            raise ValueError("no answer")

        statistics = []
        for candidate, group in zip(candidates, references, strict=True):
            ask("SCORE", *(text.replace("|||", " ") for text in (*group, candidate)))
            statistics.append(answer())
        ask("EVAL", *statistics)
        *_, score = (answer() for _ in range(len(candidates) + 1))  # those of the clips come first
        return [float(score)]


def _spice(candidates: _Tokens, references: list[_Tokens], time_limit: float) -> list[float]:
    """Mean over clips of SPICE 1.0's F score."""
    jar = _jar("spice", "spice-1.0.jar", _GET_JARS)
    for name in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"):
        _jar("spice", f"lib/{name}", _GET_MODELS)
    clips = [
        {"image_id": clip, "test": candidate, "refs": group}
        for clip, (candidate, group) in enumerate(zip(candidates, references, strict=True))
    ]
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder, "in.json"), Path(folder, "out.json")
        asked.write_text(json.dumps(clips), encoding="utf-8")
        arguments = ["-Xmx8G", "-jar", str(jar), str(asked), "-out", str(answered), "-subset", "-silent"]
        with _java(arguments, time_limit) as process:
            _finish(process)
            scores = [clip["scores"]["All"]["f"] for clip in json.loads(answered.read_text(encoding="utf-8"))]
            return [sum(map(float, scores)) / len(candidates)]


def _tokenize(texts: list[str], punctuation: frozenset[str], time_limit: float) -> tuple[_Tokens, str]:
    """The texts as tokens, and the name of the tokenizer."""
    try:
        jar = _jar("tokenizer", "stanford-corenlp-3.4.1.jar", _GET_JARS)
        # The tokenizer loses empty lines at the end.
        unique = [text for text in dict.fromkeys(texts) if text]
        main = ["-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
        with _java(main, time_limit) as process:
            *lines, _ = _finish(process, "\n".join([*unique, "."])).rstrip("\n").split("\n")
            if len(lines) != len(unique):
                raise ValueError(f"{len(lines)} lines for {len(unique)} captions")
        words = {"": []} | {text: line.rstrip().split(" ") for text, line in zip(unique, lines, strict=True)}
        name = "PTB (Stanford CoreNLP 3.4.1)"
    except _UnavailableError as reason:
        words = {text: _python_tokens(text) for text in texts}
        name = f"Python in PTB's convention ({reason})"
    return [" ".join(word for word in words[text] if word not in punctuation) for text in texts], name


def _python_tokens(text: str) -> list[str]:
    """Lower-case words in the convention of the Penn Treebank; punctuation marks are tokens."""
    text = _CONTRACTION.sub(r" \1", text.lower().replace("\u2019", "'"))
    tokens = (_BRACKETS.get(token, token) for token in _TOKEN.findall(text))
    return [token for token in tokens if token not in ('"', "\u2018", "\u201c", "\u201d", "\u2013", "\u2014", "\u2026")]


def _jar(package: str, name: str, command: str) -> Path:
    """A file in a folder of pycocoevalcap, for Java to run."""
    if shutil.which("java") is None:
        raise _UnavailableError(f"java is not on the PATH; {_GET_JAVA}")
    path = _folder(package) / name
    if not path.is_file():
        raise _UnavailableError(f"{path} is not there; {command}")
    return path


def _folder(package: str) -> Path:
    return Path(next(iter(importlib.util.find_spec(f"pycocoevalcap.{package}").submodule_search_locations)))


@contextmanager
def _java(arguments: list[str], time_limit: float) -> Iterator[subprocess.Popen]:
    """A Java process with text pipes, killed with its children at the end or after `time_limit` seconds.

    What goes wrong in the body raises _UnavailableError with the last line that Java wrote to stderr, or the error.
    """
    command = ["java", "-Dfile.encoding=UTF-8", *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8", "errors": "replace"}
    expired = Event()
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        try:
            process = subprocess.Popen(command, **pipes, stderr=log, start_new_session=True)
        except OSError as error:
            raise _UnavailableError(f"java failed: {error}") from error
        timer = Timer(time_limit, lambda: (expired.set(), _kill(process)))
        timer.daemon = True
        timer.start()
        try:
            yield process
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.seek(0)
            # Lines of a stack trace are indented and tell less than what they follow.
            said = [line.strip() for line in log.read().split("\n") if line.strip() and not line[0].isspace()]
            reason = said[-1] if said else str(error)
            limit = f"stopped after {time_limit:g} s"
            raise _UnavailableError(limit if expired.is_set() else f"java failed: {reason}") from error
        finally:
            timer.cancel()
            _kill(process)
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):
                    pipe.close()
            process.wait()


def _finish(process: subprocess.Popen, text: str = "") -> str:
    """What the process answers to `text`; ValueError unless it ends well."""
    answer, _ = process.communicate(text)
    if process.returncode:
        raise ValueError(f"exit status {process.returncode}")
    return answer


def _kill(process: subprocess.Popen) -> None:
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
