"""Finding the audio of a data set by its name, in any folder and format."""

import os
import unicodedata

import pytest
from support.published import sounds, text

from atk.data.published.importing import _notes_on
from atk.data.published.tree import Tree


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    return folder


def test_the_tree_prefers_readable_files_in_the_right_folder(root):
    sounds(root, "b/train/a.wav", "a/test/a.wav", "c/d.flac", "c/e.wav", "k/e.WAV")
    text(root, "aa/train/d.mid", "")
    text(root, ".hidden/f.wav", "")
    (root / "c" / "loop").symlink_to(root)
    (root / "elsewhere").mkdir()
    sounds(root.parent, "linked/g.wav")
    (root / "h").symlink_to(root.parent / "linked")
    tree = Tree(root, ())

    def path(*arguments, **options):
        return tree.locate(*arguments, **options).path.removeprefix(f"{root}/")

    assert path(["a"], ["train"]) == "b/train/a.wav" and path(["a.wav"], ["TEST"]) == "a/test/a.wav"
    assert path(["none", "folder\\d.mp3"], ["train"]) == "c/d.flac" and path(["a"], ["val"], only_there=True) == ""
    assert path(["f"]) == "" and path(["g"]) == "h/g.wav" and tree.ambiguous == []
    assert path(["e"]) == "c/e.wav" and tree.ambiguous == ["e"]


def test_what_the_tree_cannot_tell_or_read_is_reported(root, monkeypatch):
    sounds(root, "a/x.wav", "b/x.wav", "closed/y.wav")
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    tree = Tree(root, ())
    assert tree.locate(["x"]).path == str(root / "a" / "x.wav") and tree.locate(["y"]).path == ""
    assert _notes_on(tree) == [
        "1 clips with several files of the same name; the first is used: x",
        f"1 folders that cannot be listed: {root / 'closed'}",
    ]


def test_the_tree_finds_other_spellings(root):
    listed, stored = (unicodedata.normalize(form, "café : 1 ") for form in ("NFC", "NFD"))
    sounds(root, f"{stored}.wav", "b .wav", "b.wav", " c.wav")
    tree = Tree(root, ())
    assert tree.locate([listed.replace(":", "_")]).path == str(root / f"{stored}.wav")
    assert tree.locate(["b "]).path.endswith("/b .wav") and tree.locate(["b"]).path.endswith("/b.wav")
    assert tree.locate(["c.wav"]).path.endswith("/ c.wav")


def test_names_that_are_not_unicode_are_left_out(root):
    (root / os.fsdecode(b"\xff.wav")).write_bytes(b"")
    assert Tree(root, ()).locate([os.fsdecode(b"\xff")]).fault == "its path is not valid UTF-8; rename it"
