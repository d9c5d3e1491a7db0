"""The README's example runs as it stands, and its claims are those of the run whose results are kept."""

import doctest
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


def test_example():
    found = doctest.testfile(str(README), module_relative=False)
    assert found.attempted >= 10
    assert not found.failed


def test_claims_are_those_of_the_results_that_are_kept():
    kept = (ROOT / "docs/results/laptop/claims.md").read_text(encoding="utf-8").split("## Effects")[0]
    table = [line for line in kept.splitlines() if line.startswith("|")]
    shown = README.read_text(encoding="utf-8").split("## Which claims hold here")[1].split("\n## ")[0]
    assert table == [line for line in shown.splitlines() if line.startswith("|")]
