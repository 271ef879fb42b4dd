"""Captioning metrics of the published evaluation code (pycocoevalcap), and what is missing to compute them."""

import json
import math
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from atk.eval.fluency import fense, fluency_factors
from atk.eval.java import UnavailableError, find_jar, finish, run_java
from atk.extras import install_command

METRICS = (
    "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "SPICE", "SPIDEr", "SPIDEr-FL", "FENSE",
)  # fmt: skip

_GET_LIBRARY = install_command("pycocoevalcap")
_GET_JARS = "pip install --force-reinstall --no-deps pycocoevalcap"
_GET_MODELS = "python -m pycocoevalcap.spice.get_stanford_models"
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_CONTRACTION = re.compile(r"(?<=\w)(n't|'(?:s|re|ve|ll|d|m))\b|(?<=\bcan)(?=not\b)")
_TOKEN = re.compile(r"n't\b|'(?:s|re|ve|ll|d|m)\b|\w+(?:[-/.]\w+|[,:]\d+)*|[^\w\s]")

_Tokenized = list[str]  # captions with tokens separated by single spaces


@dataclass(frozen=True)
class CaptionScores:
    """Scores of a set of captions.

    Args:
        values: score of each of `METRICS` that could be computed. Scores are fractions as in the
            literature (BLEU-4 of 1.0 is a perfect match); CIDEr goes up to 10.
        missing: for each other metric, what is missing and the command that installs it, or why the metric failed.
        tokenizer: name of the tokenizer; scores with different tokenizers can differ slightly.
    """

    values: dict[str, float]
    missing: dict[str, str]
    tokenizer: str


def caption_metrics(
    candidates: Sequence[str], references: Sequence[Sequence[str]], *, time_limit: float = 600.0
) -> CaptionScores:
    """BLEU-1 to 4, METEOR, ROUGE-L, CIDEr, SPICE, SPIDEr, SPIDEr-FL, and FENSE of captions against their references.

    All metrics need pycocoevalcap; METEOR also needs Java, and SPICE needs Java and the models of Stanford CoreNLP.
    `SPIDEr = (CIDEr + SPICE) / 2`. SPIDEr-FL and FENSE take off 90 % of the score of a caption that FENSE's detector
    finds not fluent; they need its published models (see `atk.eval.fluency`). Nothing is downloaded: metrics that
    cannot be computed are listed in `missing`. Captions are tokenized by the Penn Treebank tokenizer of the published
    code, or, without Java, by a Python tokenizer with the same conventions (lowercase, contractions split, punctuation
    removed); FENSE takes them as they are. CIDEr gives less weight to words that more clips use, and none to words that
    all clips use, so it is 0 for a single clip.

    Args:
        candidates: one caption per clip, possibly empty.
        references: one or more reference captions per clip.
        time_limit: time limit of each Java process, in seconds.

    Raises:
        TypeError: a caption is not a string, or the references of a clip are a single string.
        ValueError: there is no clip, the lengths differ, or all references of a clip are blank.
    """
    _check(candidates, references)
    given = [list(group) for group in references]
    try:
        from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS
    except ImportError:
        return CaptionScores({}, dict.fromkeys(METRICS, f"pycocoevalcap is not installed; {_GET_LIBRARY}"), "none")
    texts = [" ".join(text.split()) for text in (*candidates, *(text for group in given for text in group))]
    tokenized, tokenizer = _tokenize(texts, frozenset(PUNCTUATIONS), time_limit)
    rest = iter(tokenized[len(candidates) :])
    tokenized_references = [[next(rest) for _ in group] for group in given]
    scores = _scores(tokenized[: len(candidates)], tokenized_references, time_limit)
    _add_fluency(scores, list(candidates), given)
    return CaptionScores(scores.values, scores.missing, tokenizer)


def _check(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    for name, value in (("candidates", candidates), ("references", references)):
        if isinstance(value, str):
            raise TypeError(f"{name} must be a list with one entry per clip, got a string")
    if len(candidates) != len(references) or not len(candidates):
        raise ValueError(
            "candidates and references must have the same number of clips, at least 1, got "
            f"{len(candidates)} and {len(references)}"
        )
    for clip, (candidate, group) in enumerate(zip(candidates, references, strict=True)):
        if not isinstance(candidate, str):
            raise TypeError(f"candidates[{clip}] must be a string, got {type(candidate).__name__}")
        if isinstance(group, str) or not all(isinstance(text, str) for text in group):
            raise TypeError(f"references[{clip}] must be a list of strings, got {group!r}")
        if not any(text.strip() for text in group):
            raise ValueError(f"references[{clip}] must contain at least one caption, got {list(group)!r}")


class _Scores:
    """The scores so far: of the whole set, of each clip where the metric has them, and what is missing."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.clips: dict[str, list[float]] = {}
        self.missing: dict[str, str] = {}

    def add(self, names: Sequence[str], metric: Callable[[], Sequence[float | Sequence[float]]]) -> None:
        """Compute metrics. A metric with a score of each clip has their mean as its own."""
        try:
            for name, score in zip(names, metric(), strict=True):
                if isinstance(score, float):
                    value = score
                else:
                    self.clips[name] = list(map(float, score))
                    value = sum(self.clips[name]) / len(score)
                if not math.isfinite(value):
                    raise UnavailableError("the score is not a finite number")
                self.values[name] = value
        except UnavailableError as reason:
            self.missing.update(dict.fromkeys(names, str(reason)))

    def needs(self, name: str, *others: str) -> bool:
        """Whether all the others are there that a metric is computed from; otherwise, it is listed as missing."""
        if absent := [other for other in others if other not in self.values]:
            self.missing[name] = "needs " + " and ".join(absent)
        return not absent


def _scores(candidates: _Tokenized, references: list[_Tokenized], time_limit: float) -> _Scores:
    """The metrics of tokenized captions."""
    scores = _Scores()
    scores.add(METRICS[:4], lambda: _bleu(candidates, references))
    scores.add(("METEOR",), lambda: _meteor(candidates, references, time_limit))
    scores.add(("ROUGE-L",), lambda: _rouge(candidates, references))
    scores.add(("CIDEr",), lambda: [_cider(candidates, references)])
    scores.add(("SPICE",), lambda: [_spice(candidates, references, time_limit)])
    if scores.needs("SPIDEr", "CIDEr", "SPICE"):
        scores.values["SPIDEr"] = (scores.values["CIDEr"] + scores.values["SPICE"]) / 2
    return scores


def _add_fluency(scores: _Scores, candidates: list[str], references: list[list[str]]) -> None:
    """Add the metrics that depend on the fluency of captions, given as they were written."""
    try:
        factors = fluency_factors(candidates)
    except UnavailableError as reason:
        scores.missing |= dict.fromkeys(("SPIDEr-FL", "FENSE"), str(reason))
        return
    if scores.needs("SPIDEr-FL", "SPIDEr"):
        parts = zip(scores.clips["CIDEr"], scores.clips["SPICE"], factors, strict=True)
        scores.add(("SPIDEr-FL",), lambda: [[(cider + spice) / 2 * factor for cider, spice, factor in parts]])
    scores.add(("FENSE",), lambda: [fense(candidates, references, factors)])


def _by_clip(
    candidates: _Tokenized, references: list[_Tokenized]
) -> tuple[dict[int, _Tokenized], dict[int, _Tokenized]]:
    """References and candidates in the format of pycocoevalcap's scorers."""
    return dict(enumerate(references)), {clip: [text] for clip, text in enumerate(candidates)}


def _bleu(candidates: _Tokenized, references: list[_Tokenized]) -> list[float]:
    from pycocoevalcap.bleu.bleu import Bleu

    return [float(score) for score in Bleu(4).compute_score(*_by_clip(candidates, references), verbose=0)[0]]


def _rouge(candidates: _Tokenized, references: list[_Tokenized]) -> list[float]:
    from pycocoevalcap.rouge.rouge import Rouge

    return [float(Rouge().compute_score(*_by_clip(candidates, references))[0])]


def _cider(candidates: _Tokenized, references: list[_Tokenized]) -> list[float]:
    """CIDEr of each clip."""
    from pycocoevalcap.cider.cider import Cider

    if not any(text for group in references for text in group):
        raise UnavailableError("no reference contains a word")
    return Cider().compute_score(*_by_clip(candidates, references))[1].tolist()


def _meteor(candidates: _Tokenized, references: list[_Tokenized], time_limit: float) -> list[float]:
    """METEOR 1.5. Its jar computes statistics of each clip from SCORE lines, and the scores from an EVAL line."""
    jar = find_jar("meteor", "meteor-1.5.jar", _GET_JARS)
    with run_java(["-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"], time_limit) as process:
        assert process.stdin is not None and process.stdout is not None
        requests, answers = process.stdin, process.stdout

        def ask(*fields: str) -> None:
            requests.write(" ||| ".join(fields) + "\n")
            requests.flush()

        def answer() -> str:
            if line := answers.readline():
                return line.strip()
            raise ValueError("no answer")

        statistics = []
        for candidate, group in zip(candidates, references, strict=True):
            ask("SCORE", *(text.replace("|||", " ") for text in (*group, candidate)))
            statistics.append(answer())
        ask("EVAL", *statistics)
        *_, score = (answer() for _ in range(len(candidates) + 1))  # the scores of the clips come first
        return [float(score)]


def _spice(candidates: _Tokenized, references: list[_Tokenized], time_limit: float) -> list[float]:
    """F-score of SPICE 1.0 of each clip."""
    jar = find_jar("spice", "spice-1.0.jar", _GET_JARS)
    for name in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"):
        find_jar("spice", f"lib/{name}", _GET_MODELS)
    clips = [
        {"image_id": clip, "test": candidate, "refs": group}
        for clip, (candidate, group) in enumerate(zip(candidates, references, strict=True))
    ]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "in.json")
        target = Path(folder, "out.json")
        source.write_text(json.dumps(clips), encoding="utf-8")
        arguments = ["-Xmx8G", "-jar", str(jar), str(source), "-out", str(target), "-subset", "-silent"]
        with run_java(arguments, time_limit) as process:
            finish(process)
            scores = [clip["scores"]["All"]["f"] for clip in json.loads(target.read_text(encoding="utf-8"))]
            return [float(score) for score in scores]


def _tokenize(texts: list[str], punctuation: frozenset[str], time_limit: float) -> tuple[_Tokenized, str]:
    """Tokenize texts and remove punctuation. Returns the tokenized texts and the name of the tokenizer."""
    try:
        jar = find_jar("tokenizer", "stanford-corenlp-3.4.1.jar", _GET_JARS)
        # The tokenizer drops empty lines at the end, so empty texts are left out and a last line is added.
        unique = [text for text in dict.fromkeys(texts) if text]
        main = ["-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
        with run_java(main, time_limit) as process:
            *lines, _ = finish(process, "\n".join([*unique, "."])).rstrip("\n").split("\n")
            if len(lines) != len(unique):
                raise ValueError(f"{len(lines)} lines for {len(unique)} captions")
        words: dict[str, list[str]] = {"": []} | {
            text: line.rstrip().split(" ") for text, line in zip(unique, lines, strict=True)
        }
        name = "PTB (Stanford CoreNLP 3.4.1)"
    except UnavailableError as reason:
        words = {text: _python_tokens(text) for text in texts}
        name = f"Python with PTB conventions ({reason})"
    return [" ".join(word for word in words[text] if word not in punctuation) for text in texts], name


def _python_tokens(text: str) -> list[str]:
    """Lowercase tokens with the conventions of the Penn Treebank; punctuation marks are tokens."""
    text = _CONTRACTION.sub(r" \1", text.lower().replace("\u2019", "'"))
    tokens = (_BRACKETS.get(token, token) for token in _TOKEN.findall(text))
    return [token for token in tokens if token not in ('"', "\u2018", "\u201c", "\u201d", "\u2013", "\u2014", "\u2026")]
