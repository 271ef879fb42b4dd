"""Spoiled files of every kind give the right result or an error that names them; tests/support/fuzz.py tries more."""

import sys

import pytest
from support.fuzz import outcomes
from support.fuzz_kinds import KINDS

SLOW = ("run folder", "pretrained text encoder", "configuration")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to limit the memory of a process")
@pytest.mark.parametrize("name", KINDS)
def test_spoiled_files(name):
    results = outcomes(name, variants=20 if name in SLOW else 100, seed=1)
    wrong = [result for result in results if result.status not in ("read", "refused")]
    assert not wrong, "\n".join(map(str, wrong))
    assert {result.status for result in results} == {"read", "refused"}
