"""Run the pages whose output is shown: ``make tutorials`` writes what they print and draw, ``--check`` compares it.

The blocks of a page run in order, in one folder. What a Python or shell block prints is the ``text`` block after it;
pictures that Python saves are kept beside the page. Nothing is written unless all of a page runs.
"""

import argparse
import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [DOCS / "README.md", DOCS / "concept.md", *sorted((DOCS / "tutorials").glob("*.md"))]
# Files that the commands of a page need, as in a clone.
CLONE = ("Snakefile", "workflow", "config", "profiles", "docs")

BLOCK = re.compile(
    r"^```(?P<language>python|sh)\n(?P<code>.*?)^```\n(?:\n```text\n(?P<shown>.*?)^```\n)?", re.MULTILINE | re.DOTALL
)
# Times differ from run to run, and so does the width of what holds them.
TIME = re.compile(r"\d[\d.]* ?(?:ms|s|min|h)\b")
NUMBER = re.compile(r"(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?: ± (\d+(?:\.\d+)?(?:e[+-]?\d+)?))?")
# Another processor rounds differently, and training amplifies it.
RELATIVE, ABSOLUTE = 0.1, 0.05


def run(page: Path, folder: Path) -> str:
    """Run a page in a folder, and return its text with what the blocks print now."""
    text = page.read_text(encoding="utf-8")
    names = {"__name__": "__main__"}

    def executed(block: re.Match) -> str:
        if block["language"] == "sh" and block["shown"] is None:
            return block[0]  # a command for the reader
        line = text[: block.start("code")].count("\n")
        printed = io.StringIO()
        if block["language"] == "sh":
            done = subprocess.run(["bash", "-euc", block["code"]], text=True, stdout=subprocess.PIPE, check=True)
            printed.write(done.stdout)
        else:
            code = compile("\n" * line + block["code"], str(page), "exec")
            with contextlib.redirect_stdout(printed):
                exec(code, names)
        shown = "\n".join(row.rstrip() for row in printed.getvalue().strip("\n").splitlines())
        source = f"```{block['language']}\n{block['code']}```\n"
        return f"{source}\n```text\n{shown}\n```\n" if shown else source

    with contextlib.chdir(folder):
        return BLOCK.sub(executed, text)


def differences(before: str, now: str) -> list[str]:
    """Lines of two texts that differ by more than times, rounding, or the errors that they show."""
    found = [] if before.count("\n") == now.count("\n") else ["another number of lines"]
    for old, new in zip(before.splitlines(), now.splitlines(), strict=False):
        a, b = (re.sub(r"\s+", " ", TIME.sub("TIME", line)) for line in (old, new))
        close = all(
            abs(float(x) - float(y)) <= RELATIVE * abs(float(x)) + ABSOLUTE + float(error or 0)
            for (x, error), (y, _) in zip(NUMBER.findall(a), NUMBER.findall(b), strict=False)
        )
        if NUMBER.sub("#", a) != NUMBER.sub("#", b) or not close:
            found.append(f"{old}\n   now: {new}")
    return found


def picture_differs(before: Path, now: Path) -> bool:
    """True if two pictures have different sizes, or colours that differ by more than 4 % in the mean."""
    import numpy as np
    from matplotlib.image import imread

    if not before.exists():
        return True
    old, new = imread(before), imread(now)
    return old.shape != new.shape or float(np.abs(old - new).mean()) > 0.04


def keep(text: str, page: Path, pictures: list[Path]) -> None:
    """Replace a page and its pictures, each by renaming."""
    for picture in pictures:
        part = page.parent / f".{picture.name}"
        shutil.copy(picture, part)
        os.replace(part, page.parent / picture.name)
    part = page.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, page)


def main() -> None:
    """Run the pages in this process, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument("pages", nargs="*", type=Path, help="default: all")
    options = parser.parse_args()

    import matplotlib
    import torch

    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    matplotlib.use("Agg")
    torch.set_num_threads(1)
    wrong = []
    for page in [page.resolve() for page in options.pages] or PAGES:
        print(page.relative_to(ROOT), flush=True)
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "figures").mkdir()
            for item in CLONE:
                (folder / item).symlink_to(ROOT / item)
            text = run(page, folder)
            pictures = sorted([*folder.glob("*.png"), *folder.glob("figures/*.png")])
            if options.check:
                wrong += [f"{page.name}: {line}" for line in differences(page.read_text(encoding="utf-8"), text)]
                wrong += [f"{p.name}: differs" for p in pictures if picture_differs(page.parent / p.name, p)]
            else:
                keep(text, page, pictures)
    sys.exit("\n".join(wrong) or None)


if __name__ == "__main__":
    main()
