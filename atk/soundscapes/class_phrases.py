"""Noun phrases for classes of recordings: derived from the name of the class, or from a table."""

import re
from collections.abc import Collection, Iterator
from pathlib import Path

from atk.data.tables import Table

_WITHOUT_ARTICLE = {
    *("applause", "birdsong", "chatter", "fire", "gunfire", "hail", "laughter", "lightning", "music", "noise"),
    *("percussion", "rain", "silence", "sleet", "snow", "speech", "static", "thunder", "traffic", "water", "wind"),
    *("children", "feet", "men", "people", "teeth", "women"),
}


def phrase_of(name: str) -> str:
    """Make a noun phrase from the name of a class: "dog_bark" -> "a dog bark", "sea_waves" -> "sea waves".

    Underscores and capitals separate words. What is in parentheses or after a comma is left out. Plurals, words in -ing
    ("keyboard typing"), and a few other nouns ("rain", "teeth") take no article.

    Raises:
        ValueError: the name contains no letter.
    """
    short = re.sub(r"\(.*?\)", " ", name.partition(",")[0])
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", short.replace("_", " ")).lower().split()
    if not re.search(r"[^\W\d_]", "".join(words)):
        raise ValueError(f"class {name!r} cannot be named in captions; give it a phrase in phrases.csv")
    gerund = re.search(r"[aeiouy].*ing$", words[-1])  # not "ring" or "string"
    plural = re.search(r"[^isu]s$", words[-1])  # not "hiss" or "bus"
    if gerund or plural or words[-1] in _WITHOUT_ARTICLE:
        return " ".join(words)
    vowel = re.match(r"(?!eu|one\b)[aeio]|hour|u(?![^aeiou][aeiou]|\b)", words[0])  # not "ukulele" or "u-turn"
    return " ".join(["an" if vowel else "a", *words])


def class_forms(classes: Collection[str], table: Path) -> dict[str, dict[str, tuple[str, ...]]]:
    """Wordings of classes, by style ("noun" or "clause") and class; every class has at least one noun.

    Args:
        classes: names of the classes.
        table: CSV file with the columns `class`, `phrase` (a noun phrase, such as "a dog barking"), and optionally
            `clause` ("a dog barks"), with any number of rows for each class. Classes without a row get a phrase from
            their names, and so do all classes if there is no such file.

    Raises:
        ValueError: the table is malformed, names an unknown class, or lacks a phrase; two classes share a wording; or
            no phrase can be made from a name.
    """
    nouns: dict[str, tuple[str, ...]] = {}
    clauses: dict[str, tuple[str, ...]] = {}
    for name, phrase, clause in _rows(table, classes) if table.is_file() else ():
        nouns[name] = (*nouns.get(name, ()), phrase)
        if clause:
            clauses[name] = (*clauses.get(name, ()), clause)
    nouns = {name: nouns.get(name) or (_as_form(phrase_of(name)),) for name in classes}
    owner: dict[str, str] = {}
    for name, forms in (*nouns.items(), *clauses.items()):
        for form in forms:
            if owner.setdefault(form.lower(), name) != name:
                raise ValueError(f"classes {owner[form.lower()]!r} and {name!r} have the same phrase, {form!r}")
    return {"noun": nouns, "clause": clauses}


def _rows(path: Path, classes: Collection[str]) -> Iterator[tuple[str, str, str]]:
    """Yield (class, phrase, clause) for each row of the table; the clause may be empty."""
    for line, row in Table.open(path, ("class", "phrase"), like=("clause",)).records():
        name, phrase, clause = (" ".join(row.get(column, "").split()) for column in ("class", "phrase", "clause"))
        if name not in classes:
            raise ValueError(f"{path} line {line}: there is no class {name!r}; the classes are {', '.join(classes)}")
        if not phrase:
            raise ValueError(f"{path} line {line}: class {name!r} has no phrase")
        yield name, _as_form(phrase), _as_form(clause)


def _as_form(text: str) -> str:
    """A form without places for adjectives and adverbs: braces are plain characters."""
    return text.replace("{", "{{").replace("}", "}}")
