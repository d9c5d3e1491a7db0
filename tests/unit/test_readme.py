"""The README's example runs as it stands."""

import doctest
from pathlib import Path


def test_example():
    found = doctest.testfile(str(Path(__file__).parents[2] / "README.md"), module_relative=False)
    assert found.attempted >= 10
    assert not found.failed
