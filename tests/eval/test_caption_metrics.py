"""Captioning metrics against the published code and cases computed by hand, and reports of what is missing."""

import json
import math
import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from atk.eval import java
from atk.eval.caption_metrics import METRICS, _tokenize, caption_metrics

SENTENCES = json.loads(Path(__file__).with_name("captions_scored.json").read_text(encoding="utf-8"))
# From pycocoevalcap 1.2 itself on these sentences: PTBTokenizer, then Bleu(4), Meteor, Rouge, and Cider.
PUBLISHED = {
    "BLEU-1": 0.9241249156495204,
    "BLEU-2": 0.8148409617877559,
    "BLEU-3": 0.6976598784516812,
    "BLEU-4": 0.5235484475935754,
    "METEOR": 0.409078905455527,
    "ROUGE-L": 0.6815148193105044,
    "CIDEr": 2.0465667035271546,
}
WITHOUT_JAVA = [name for name in PUBLISHED if name != "METEOR"]

pytest.importorskip("pycocoevalcap", reason="pip install 'audio-text-kernels[captioning]'")
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="java is not on the PATH")


@pytest.fixture
def no_java(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def fake_java(tmp_path, monkeypatch):
    """A function that puts a program called java, with the given text, first on the PATH."""

    def put(text):
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "java").write_text(text)
        (tmp_path / "bin" / "java").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path / "bin") + os.pathsep + os.environ["PATH"])

    return put


def score(candidate, *references):
    return caption_metrics([candidate], [list(references)]).values


@pytest.mark.slow
@needs_java
def test_scores_equal_those_of_the_published_code(capfd):
    scores = caption_metrics(**SENTENCES)
    assert list(scores.values)[: len(PUBLISHED)] == list(PUBLISHED)
    for name, value in PUBLISHED.items():
        assert scores.values[name] == pytest.approx(value, rel=1e-9), name
    assert scores.tokenizer.startswith("PTB")
    assert set(scores.values) | set(scores.missing) == set(METRICS) and not set(scores.values) & set(scores.missing)
    assert capfd.readouterr() == ("", "")


def test_without_java_other_scores_are_equal_and_the_command_is_named(no_java, capfd):
    scores = caption_metrics(**SENTENCES)
    assert list(scores.values) == WITHOUT_JAVA
    for name in WITHOUT_JAVA:
        assert scores.values[name] == pytest.approx(PUBLISHED[name], rel=1e-9), name
    assert scores.tokenizer.startswith("Python") and "java is not on the PATH" in scores.tokenizer
    for name in ("METEOR", "SPICE"):
        assert scores.missing[name] == "java is not on the PATH; apt-get install default-jre-headless"
    assert scores.missing["SPIDEr"] == "needs SPICE"
    assert capfd.readouterr() == ("", "")


def test_small_cases_computed_by_hand(no_java):
    values = score("a dog barks loudly", "a dog barks twice")
    assert values["BLEU-1"] == pytest.approx(3 / 4)  # three of four words
    assert values["BLEU-2"] == pytest.approx(math.sqrt(3 / 4 * 2 / 3))  # two of three pairs
    assert values["BLEU-3"] == pytest.approx((3 / 4 * 2 / 3 * 1 / 2) ** (1 / 3))
    assert score("a dog", "a dog barks loudly")["BLEU-1"] == pytest.approx(math.exp(1 - 4 / 2))  # brevity penalty
    assert score("a a a a", "a dog barks a")["BLEU-1"] == pytest.approx(2 / 4)  # clipped counts
    assert score("a dog barks loudly", "a loud dog barks")["ROUGE-L"] == pytest.approx(3 / 4)  # a, dog, barks
    precision, recall, beta = 2 / 4, 2 / 2, 1.2
    expected = (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
    assert score("a dog barks loudly", "a dog")["ROUGE-L"] == pytest.approx(expected)


def test_perfect_and_disjoint_captions(no_java):
    candidates, references = (
        ["a dog barks loudly", "heavy rain falls down"],
        [["a dog barks loudly"], ["heavy rain falls down"]],
    )
    values = caption_metrics(candidates, references).values
    for name in ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L"):
        assert values[name] == pytest.approx(1.0), name
    assert values["CIDEr"] == pytest.approx(10.0)
    values = caption_metrics(candidates[::-1], references).values
    assert max(values.values()) < 1e-3


@pytest.mark.exhaustive
@needs_java
@pytest.mark.parametrize("variable", ["JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS"])
def test_meteor_does_not_depend_on_the_language_of_the_user(monkeypatch, variable):
    monkeypatch.setenv("LC_ALL", "it_IT.UTF-8")
    monkeypatch.setenv(variable, "-Duser.language=it -Duser.country=IT -Duser.language.format=de")
    assert caption_metrics(**SENTENCES).values["METEOR"] == pytest.approx(PUBLISHED["METEOR"], rel=1e-9)


@pytest.mark.exhaustive
@needs_java
def test_meteor_matches_word_forms():
    # Two of three words would give at most 2/3; METEOR also matches the stems of barking and barks.
    assert 2 / 3 < score("a dog barking", "a dog barks")["METEOR"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("java", [pytest.param(True, marks=[needs_java, pytest.mark.exhaustive]), False])
def test_unusual_captions(java, tmp_path, monkeypatch):
    if not java:
        monkeypatch.setenv("PATH", str(tmp_path))
    candidates = ["", "ein Hündchen bellt\nzweimal!", "犬が吠える\u2028\r", "...", "a ||| b\tc", "  "]
    references = [
        ["a dog barks"],
        ["ein Hündchen bellt zweimal"],
        ["犬が吠える", ""],
        ["!", "a bell"],
        ["a b c"],
        ["x y"],
    ]
    scores = caption_metrics(candidates, references)
    assert set(scores.values) >= {*WITHOUT_JAVA, *(["METEOR"] if java else [])}
    assert all(math.isfinite(value) and value > 0 for value in scores.values.values())
    assert scores.tokenizer.startswith("PTB" if java else "Python")


def test_line_breaks_are_spaces_and_non_ascii_letters_are_kept(no_java):
    assert score("ein Hündchen\n\u2028bellt 犬!", "ein hündchen bellt 犬")["BLEU-4"] == pytest.approx(1.0)


def test_cider_of_a_single_clip_is_zero(no_java):
    assert score("a dog barks", "a dog barks")["CIDEr"] == 0.0


def test_references_without_words(no_java):
    scores = caption_metrics(["a dog"], [["..."]])
    assert scores.missing["CIDEr"] == "no reference contains a word" and scores.values["BLEU-1"] < 1e-6
    assert scores.missing["SPIDEr"] == "needs CIDEr and SPICE"


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A dog DOESN'T bark; it's (almost) quiet!", "a dog does n't bark it 's -lrb- almost -rrb- quiet"),
        ('A low-pitched "hum", 3.5 kHz -- and 1,000 more...', "a low-pitched hum 3.5 khz and 1,000 more"),
        ("Ein HÜNDCHEN bellt 犬が吠える", "ein hündchen bellt 犬が吠える"),
        ("They\u2019ll say: we cannot, we can't", "they 'll say we can not we ca n't"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("java", [pytest.param(True, marks=needs_java), False])
def test_tokens(text, tokens, java, tmp_path, monkeypatch):
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

    if not java:
        monkeypatch.setenv("PATH", str(tmp_path))
    assert _tokenize([text, "", text], frozenset(PUNCTUATIONS), 60.0)[0] == [tokens, "", tokens]


def test_without_the_library(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("pycocoevalcap")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    scores = caption_metrics(["a dog"], [["a dog"]])
    assert scores.values == {} and list(scores.missing) == list(METRICS)
    assert all("pip install 'audio-text-kernels[captioning]'" in reason for reason in scores.missing.values())


def test_without_jars_and_models(tmp_path, monkeypatch, fake_java):
    fake_java("#!/bin/sh\nexit 1\n")
    monkeypatch.setattr(java, "package_folder", lambda package: tmp_path / package)
    scores = caption_metrics(**SENTENCES)
    assert list(scores.values) == WITHOUT_JAVA
    assert "stanford-corenlp-3.4.1.jar is missing" in scores.tokenizer
    assert "meteor-1.5.jar is missing; pip install" in scores.missing["METEOR"]
    assert "spice-1.0.jar is missing; pip install" in scores.missing["SPICE"]
    (tmp_path / "spice").mkdir()
    (tmp_path / "spice" / "spice-1.0.jar").touch()
    reason = caption_metrics(["a dog"], [["a dog"]]).missing["SPICE"]
    assert "stanford-corenlp-3.6.0.jar is missing; python -m pycocoevalcap.spice.get_stanford_models" in reason


def test_java_errors_are_quoted_and_other_metrics_kept(fake_java, capfd):
    fake_java("#!/bin/sh\necho noise\necho 'Error: no memory' >&2\necho '  at main' >&2\nexit 3\n")
    scores = caption_metrics(**SENTENCES)
    assert "java failed: Error: no memory" in scores.tokenizer
    assert scores.missing["METEOR"] == "java failed: Error: no memory"
    assert list(scores.values) == WITHOUT_JAVA and scores.values["CIDEr"] == pytest.approx(PUBLISHED["CIDEr"])
    assert capfd.readouterr() == ("", "")


def test_java_that_cannot_be_executed(fake_java, tmp_path, monkeypatch):
    fake_java("nothing\n")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    scores = caption_metrics(["a dog"], [["a dog"]])
    assert "java failed" in scores.missing["METEOR"] and scores.values["BLEU-1"] == pytest.approx(1.0)


@pytest.mark.slow
def test_java_that_hangs_is_stopped_with_its_children(fake_java, tmp_path):
    pids = tmp_path / "pids"
    fake_java(f"#!/bin/sh\nsleep 300 &\necho $! $$ >> {pids}\nwait\n")
    start = time.monotonic()
    scores = caption_metrics(["a dog"], [["a dog"]], time_limit=1.0)
    assert time.monotonic() - start < 200  # its children would sleep for 300
    assert scores.missing["METEOR"] == "stopped after 1 s" and "stopped after 1 s" in scores.tokenizer
    started = pids.read_text().split()
    deadline = time.monotonic() + 10  # a killed process takes a moment to end
    while any(running(pid) for pid in started) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(started) == 4 and not [pid for pid in started if running(pid)]


def running(pid):
    try:
        return Path("/proc", pid, "stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


SPICE_JAVA = """#!{python}
import json, sys
if not any(name.endswith("spice-1.0.jar") for name in sys.argv):
    sys.exit("only SPICE here")
out = sys.argv.index("-out")
clips = json.load(open(sys.argv[out - 1], encoding="utf-8"))
assert clips[1] == {{"image_id": 1, "test": "rain", "refs": ["heavy rain", "rain falls"]}}
scores = [{{"image_id": clip["image_id"], "scores": {{"All": {{"f": {f}}}}}}} for clip in clips]
json.dump(scores, open(sys.argv[out + 1], "w"))
print("noise")
"""


@pytest.mark.parametrize(("f", "expected"), [('[0.25, 0.75][clip["image_id"]]', 0.5), ("None", None)])
def test_spice_and_spider_with_the_models(f, expected, tmp_path, monkeypatch, fake_java, capfd):
    fake_java(SPICE_JAVA.format(python=sys.executable, f=f))
    for name in ("spice-1.0.jar", "lib/stanford-corenlp-3.6.0.jar", "lib/stanford-corenlp-3.6.0-models.jar"):
        (tmp_path / "spice" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "spice" / name).touch()
    monkeypatch.setattr(java, "package_folder", lambda package: tmp_path / package)
    scores = caption_metrics(["a dog", "rain"], [["a dog"], ["heavy rain", "rain falls"]])
    if expected is None:
        assert "java failed" in scores.missing["SPICE"] and scores.missing["SPIDEr"] == "needs SPICE"
    else:
        assert scores.values["SPICE"] == expected
        assert scores.values["SPIDEr"] == pytest.approx((scores.values["CIDEr"] + expected) / 2)
        assert "SPICE" not in scores.missing and "SPIDEr" not in scores.missing
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("candidates", "references", "error", "message"),
    [
        (["a"], [["a"], ["b"]], ValueError, "same number of clips, at least 1, got 1 and 2"),
        ([], [], ValueError, "at least 1, got 0 and 0"),
        (["a", "b"], [["a"], []], ValueError, r"references\[1\] must contain at least one caption"),
        (["a"], [["", " \n"]], ValueError, r"references\[0\] must contain at least one caption"),
        (["a"], ["a"], TypeError, r"references\[0\] must be a list of strings"),
        (["a"], [[None]], TypeError, r"references\[0\] must be a list of strings"),
        ([None], [["a"]], TypeError, r"candidates\[0\] must be a string, got NoneType"),
        ("a", [["a"]], TypeError, "candidates must be a list"),
    ],
)
def test_bad_input(candidates, references, error, message):
    with pytest.raises(error, match=message):
        caption_metrics(candidates, references)
