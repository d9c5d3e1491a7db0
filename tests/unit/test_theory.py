"""docs/theory.md: references to its sections, its formulas' syntax, and what it says about names and costs."""

import re
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest

from nme.activations import ACTIVATIONS
from nme.methods import METHODS

ROOT = Path(__file__).parents[2]
PAGE = "docs/theory.md"
TEXT = (ROOT / PAGE).read_text(encoding="utf-8")
REFERENCE = re.compile(re.escape(PAGE) + r",\s+(?:#\s+)?§(\d+(?:\.\d+)?)\b")
FOLDERS = ("src", "tests", "workflow", "config", "benchmarks", "docs", "profiles", "containers")
ENDINGS = (".py", ".smk", ".yaml", ".yml", ".md", ".rst", ".json", ".toml", ".def", "Snakefile", "Makefile")
BLOCK = re.compile(r"^```math\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"\$([^$\n]*)\$")
# What MathJax and KaTeX both know and GitHub allows. A new command is added here after a look at the rendered page.
COMMANDS = re.compile(
    r"Bigl|Bigr|Omega|Phi|Pr|approx|arg|bar|begin|beta|big|bigl|bigr|cdot|chi|cos|ddot|"
    r"delta|dot|dots|ell|end|epsilon|eta|frac|ge|gt|hat|in|infty|int|jmath|kappa|lVert|"
    r"lambda|langle|le|leftarrow|log|lt|lvert|mathbb|mathcal|mathrm|max|min|mu|nabla|ne|"
    r"odot|partial|phi|pi|pm|qquad|quad|rVert|rangle|rho|rvert|sigma|sim|sqrt|sum|tanh|tau|"
    r"text|textstyle|tfrac|theta|tilde|times|top|varepsilon|varphi|varsigma|vartheta"
)

PAIRS = [("begin", "end"), ("bigl", "bigr"), ("Bigl", "Bigr"), ("langle", "rangle")]
PAIRS += [("lVert", "rVert"), ("lvert", "rvert")]


def sections() -> list[str]:
    """Numbers of the headings, in their order."""
    return re.findall(r"^##+ (\d+(?:\.\d+)?)\.? ", TEXT, re.MULTILINE)


def files() -> list[Path]:
    """Texts of the project, but for this test and the tool that makes links of references."""
    others = {Path(__file__), ROOT / "docs/tools/links.py"}
    found = [*ROOT.glob("*.*"), ROOT / "Makefile", ROOT / "Snakefile"]
    for folder in FOLDERS:
        found += (ROOT / folder).rglob("*")
    return [f for f in found if f.is_file() and f.name.endswith(ENDINGS) and f not in others]


def prose() -> str:
    """The page without fenced blocks and code spans."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL))


def formulas() -> list[str]:
    return BLOCK.findall(TEXT) + INLINE.findall(prose())


# ------------------------------------------------------------------ references


def test_sections_are_numbered_in_order():
    numbers = [tuple(map(int, number.split("."))) for number in sections()]
    assert numbers[0] == (1,)
    assert len(numbers) == len(re.findall(r"^##", TEXT, re.MULTILINE)), "a heading has no number"
    for before, after in pairwise(numbers):
        allowed = {(*before[:-1], before[-1] + 1), (*before, 1) if len(before) == 1 else (before[0] + 1,)}
        assert after in allowed, (before, after)


def test_every_reference_leads_to_a_section():
    known, cited = set(sections()), set()
    for file in files():
        text = file.read_text(encoding="utf-8")
        found = set(REFERENCE.findall(text))
        assert found <= known, f"{file.relative_to(ROOT)}: {PAGE} has no section {sorted(found - known)}"
        if file.suffix in (".py", ".smk", ".yaml"):
            cited |= found
            counts = {text.count("§"), text.count("theory.md,"), len(REFERENCE.findall(text))}
            assert len(counts) == 1, f"{file.relative_to(ROOT)}: write '{PAGE}, §1.2'"
    assert set(re.findall(r"§(\d+(?:\.\d+)?)\b", TEXT)) <= known
    missing = {number.split(".")[0] for number in known} - {number.split(".")[0] for number in cited} - {"9"}
    assert not missing, f"no code cites §{missing}"


def test_links_within_the_page():
    anchors = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^##+ (.+)$", TEXT, re.M)
    }
    targets = re.findall(r"\]\(([^)]+)\)", prose())
    assert len(targets) > 9
    for target in targets:
        path, _, anchor = target.partition("#")
        assert anchor in anchors if not path else (ROOT / "docs" / path).exists(), target


def test_no_other_paper_is_cited():
    for file in files():
        assert not re.search(r"\bpaper\.md", file.read_text(encoding="utf-8")), file.relative_to(ROOT)


# ------------------------------------------------------------------ syntax


def test_fences_are_balanced():
    fences = [line for line in TEXT.splitlines() if line.startswith("```")]
    assert len(BLOCK.findall(TEXT)) > 30
    assert len(fences) % 2 == 0
    for opening, closing in zip(fences[::2], fences[1::2], strict=True):
        assert opening != "```"
        assert closing == "```"
    for line in prose().splitlines():
        assert line.count("$") % 2 == 0, line


def test_formulas_are_well_formed():
    for formula in formulas():
        for command in re.findall(r"\\([A-Za-z]+)", formula):
            assert COMMANDS.fullmatch(command), (command, formula)
        bare = re.sub(r"\\[{}]", "", formula)
        depths = [bare[:i].count("{") - bare[:i].count("}") for i in range(len(bare) + 1)]
        assert min(depths) == depths[-1] == 0, formula
        for opening, closing in PAIRS:
            found = [re.findall(rf"\\{word}(?![A-Za-z])(?:{{\w+}})?", formula) for word in (opening, closing)]
            names = [[name.replace(word, "") for name in f] for word, f in zip((opening, closing), found, strict=True)]
            assert sorted(names[0]) == sorted(names[1]), formula
        assert not re.search(r"[_^]\s*(?:[_^}&]|$)", formula), f"an index without anything in it: {formula}"


def test_inline_formulas_survive_markdown():
    """GitHub reads Markdown first: a backslash before punctuation, a star, a bar or `}_` may be taken for its own."""
    text = prose()
    for found in INLINE.finditer(text):
        formula = found[1]
        assert formula == formula.strip() != "", found[0]
        assert not re.search(r"\\[^A-Za-z]|[*|<>~]|[^\w\s]_", formula), found[0]
        assert text[found.start() - 1] in " \n(", found[0]
        assert text[found.end() : found.end() + 1] in " \n.,;:)", found[0]


# ------------------------------------------------------------------ facts


def table(header: str) -> list[list[str]]:
    """The cells of the table whose header line starts so."""
    lines = TEXT.split(f"\n{header}", 1)[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_costs_are_those_of_the_plan():
    rows = {row[0].split("`")[1]: row for row in table("| name | objective |")}
    assert {METHODS.parse(name).name for name in rows} == set(METHODS)
    for name, row in rows.items():
        method = METHODS.parse(name)
        assert float(Fraction(row[3])) == pytest.approx(method.gradients, abs=1e-9), name
        assert (row[4] == "–") == (method.symbol is None)
        if "k" in method.values:
            more = METHODS.parse(f"{name}-k=3").gradients - method.gradients
            assert more == pytest.approx(2 * (method.gradients - 1)), "the cost less 1 for each further probe"


def test_every_activation_is_there():
    rows = [row[0].split("`")[1] for row in table("| name | $\\varphi(x)$")]
    assert set(rows) == set(ACTIVATIONS)


def test_names_of_symbols_are_in_the_code():
    code = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "src").rglob("*.py"))
    names = re.findall(r"`(\w+)`", TEXT.split("## 9. ")[1])
    assert len(names) > 50
    for name in names:
        assert re.search(rf"\b{name}\b", code), name
