"""Numbers on the pages are those of the results that are kept."""

import csv
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


def test_claims_are_those_of_the_results_that_are_kept():
    kept = ROOT / "docs/results/laptop/claims.md"  # none: README shows no table
    text = kept.read_text(encoding="utf-8").split("## Effects")[0] if kept.exists() else ""
    table = [line for line in text.splitlines() if line.startswith("|")]
    shown = README.read_text(encoding="utf-8").split("## Which claims hold here")[1].split("\n## ")[0]
    assert table == [line for line in shown.splitlines() if line.startswith("|")]


def test_the_table_of_settings_is_that_of_the_search():
    found: dict[tuple, list[float]] = {}
    for row in csv.DictReader((ROOT / "docs/results/laptop/search.csv").open(encoding="utf-8")):
        assert int(row["seed"]) >= 1000, "a selection seed"
        if row["method"] in ("sgd", "grad_norm"):
            key = row["setting"], row["activation"], float(row["strength"])
            found.setdefault(key, []).append(100 * float(row["test_accuracy"]))
    text = (ROOT / "docs/science.md").read_text(encoding="utf-8").split("| setting |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| .+? \|(.+)\|$", text, re.MULTILINE)
    assert {name for name, _ in rows} == {setting for setting, *_ in found}
    for name, cells in rows:
        for rho, cell in zip((0, 0.03, 0.1, 0.3), cells.split("|"), strict=True):
            shown = cell.strip().split(" / ") if "/" in cell else ["–", "–"]
            for activation, value in zip(("gelu", "relu"), shown, strict=True):
                measured = found.get((name, activation, rho))
                assert (value == "–") == (measured is None)
                if measured:
                    assert abs(float(value) - sum(measured) / len(measured)) < 0.051
