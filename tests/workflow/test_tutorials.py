"""Pages that show output show what their code prints and draws; a picture of the idea is that of its formula."""

import subprocess
import sys
from pathlib import Path

import picture
import pytest
import tutorials
from workflow_project import ROOT

SLOW = {"your-loop.md", "measure.md", "figure.md"}


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, id=p.name, marks=[pytest.mark.slow] if p.name in SLOW else []) for p in tutorials.PAGES],
)
def test_pages_show_what_they_print(page):
    done = subprocess.run(
        [sys.executable, ROOT / "docs/tools/tutorials.py", "--check", page], text=True, capture_output=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


PAGE = """
```python
print("took 2 s, found", 1 + 2)
```

```text
took {time}, found {number}
```

```python
open("drawn.png", "w").write("a picture")
assert __name__ == "__main__"
```
"""


def test_what_a_page_prints_is_written_after_its_code(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE.format(time="9 s", number=7), encoding="utf-8")
    now = tutorials.run(page, tmp_path)
    assert now == PAGE.format(time="2 s", number=3)
    assert len(tutorials.differences(page.read_text(encoding="utf-8"), now)) == 1
    assert tutorials.differences(PAGE.format(time="9 s", number=3), now) == []
    tutorials.keep(now, page, [])
    assert page.read_text(encoding="utf-8") == now
    assert sorted(p.name for p in tmp_path.iterdir()) == ["drawn.png", "page.md"]


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        ("accuracy 81.2 %", "accuracy 80.7 %", True),
        ("accuracy 81.2 %", "accuracy 61.2 %", False),
        ("loss 0.082", "loss 0.085", True),
        ("12 rows in 3 s", "12 rows in 50 ms", True),
        ("tr N = -22.1 ± 1.6e+03", "tr N = 45 ± 1.7e+03", True),
        ("tr N = -22.1 ± 1.6e+03", "tr N = 2100 ± 1.7e+03", False),
        ("N = -1.596", "N = 1.596", False),
        ("supported", "inconclusive", False),
        ("one\ntwo", "one", False),
        ("found 3", "found", False),
    ],
)
def test_output_is_compared_up_to_times_and_rounding(before, now, same):
    assert (tutorials.differences(before, now) == []) is same


def test_a_failing_page_is_not_written(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1)\nraise ValueError\n```\n", encoding="utf-8")
    with pytest.raises(ValueError):  # noqa: PT011
        tutorials.run(page, tmp_path)


def test_the_picture_of_the_idea_can_be_drawn(tmp_path):
    picture.draw(tmp_path / "concept.png")
    assert not tutorials.picture_differs(ROOT / "docs/images/concept.png", tmp_path / "concept.png")
    assert tutorials.picture_differs(ROOT / "docs/images/ablation.png", tmp_path / "concept.png")
    assert [path.name for path in Path(tmp_path).iterdir()] == ["concept.png"]
