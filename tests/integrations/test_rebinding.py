"""Rebinding attributes of a library: versions, nesting, and the originals afterwards."""

import re
import sys
import types
from importlib.metadata import PackageNotFoundError
from unittest.mock import Mock

import pytest

from atk.integrations import rebinding
from atk.integrations.rebinding import Rebinding, import_library


@pytest.fixture
def module():
    return types.SimpleNamespace(__name__="library", score=min, loss=sum)


@pytest.fixture
def change(module, monkeypatch):
    monkeypatch.setattr(rebinding, "version", lambda package: "1.2.0")
    return Rebinding("library", ("1.1.0", "1.2.0"), lambda: [(module, "score", max)])


def test_originals_are_back_after_the_last_uninstall(module, change):
    change.install()
    with change.install():
        assert module.score is max
    assert module.score is max and module.loss is sum
    change.uninstall()
    assert module.score is min
    with pytest.raises(RuntimeError, match=re.escape("library: uninstall() was called without install()")):
        change.uninstall()


def test_originals_are_back_after_an_error(module, change):
    with pytest.raises(ZeroDivisionError), change.install():
        module.score(1 / 0)
    assert module.score is min


def test_a_later_rebinding_by_others_is_not_undone(module, change):
    change.install()
    module.score = len
    with pytest.raises(RuntimeError, match=re.escape("library.score has been rebound since install(); undo that")):
        change.uninstall()
    assert module.score is len
    module.score = max
    change.uninstall()
    assert module.score is min


def test_other_versions_are_refused(module, change, monkeypatch):
    monkeypatch.setattr(rebinding, "version", lambda package: "1.2.1")
    message = "library must have one of the versions tested (1.1.0, 1.2.0), got 1.2.1"
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        change.install()
    assert module.score is min


def test_missing_libraries_are_named(monkeypatch):
    message = "^needs open_clip_torch; pip install open_clip_torch$"
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ImportError, match=message):
        import_library("open_clip.loss")
    monkeypatch.setattr(rebinding, "version", Mock(side_effect=PackageNotFoundError))
    with pytest.raises(ImportError, match=message):
        Rebinding("open_clip_torch", (), list).install()
