"""The pages: their Python runs, their commands parse and have targets, their links lead somewhere."""

import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import typer
import yaml
from snakemake.cli import get_argument_parser
from workflow_project import ROOT

from nme import curvature
from nme.cli import app
from nme.config.project import load_project
from nme.methods import METHODS

PAGES = sorted(page for folder in (".", "docs", "docs/tutorials", "config") for page in (ROOT / folder).glob("*.md"))
CONFIG = yaml.safe_load((ROOT / "config/config.yaml").read_text(encoding="utf-8"))
# Programs of others, whose arguments are not checked.
OTHERS = {"$EDITOR", "cd", "conda", "ls", "source", "tar"}

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


class Block(NamedTuple):
    page: Path
    line: int  # of its first line in the page
    language: str
    text: str


@cache
def blocks(*languages: str) -> list[Block]:
    """The fenced blocks of all pages."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            if match[1] in languages:
                found.append(Block(page, text[: match.start(2)].count("\n") + 1, match[1], match[2]))
    return found


# ------------------------------------------------------------------ Python

RUN = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
for page in sys.argv[1:]:
    print(page, flush=True)
    exec(compile(Path(page).read_text(encoding="utf-8"), page, "exec"), {"__name__": "__main__"})
"""


def test_python_blocks_run(tmp_path):
    """The blocks of a page one after the other; line numbers of a traceback are those of the page."""
    pages: dict[str, str] = {}
    for block in blocks("python"):
        if "\n```text\n" in block.page.read_text(encoding="utf-8"):
            continue  # shows output: test_tutorials.py runs it
        name = str(block.page.relative_to(ROOT))
        before = pages.get(name, "")
        pages[name] = before + "\n" * (block.line - 1 - before.count("\n")) + block.text
    assert {"README.md", "docs/curvature.md"} <= set(pages)
    for name, code in pages.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(code, encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", RUN, *pages], cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr


# ---------------------------------------------------------------- commands


class Command(NamedTuple):
    place: str  # page:line
    words: list[str]


def commands() -> Iterator[Command]:
    for block in blocks("sh", "console", "bash"):
        for number, line in enumerate(block.text.splitlines(), block.line):
            lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
            lexer.whitespace_split = True
            words: list[str] = []
            for word in [*lexer, "&&"]:
                if set(word) <= set("&|;"):
                    while words and re.match(r"\w+=", words[0]):  # a variable of the environment
                        words = words[1:]
                    if words:
                        yield Command(f"{block.page.relative_to(ROOT)}:{number}", words)
                    words = []
                else:
                    words.append(word)


COMMANDS = list(commands())
every_command = pytest.mark.parametrize("command", COMMANDS, ids=lambda c: f"{c.place} {c.words[0]}")


def of(program: str) -> list[Command]:
    return [command for command in COMMANDS if command.words[0] == program]


SNAKEMAKE = get_argument_parser()


def parsed(command: Command):
    """The arguments of Snakemake; an unknown option ends with a message."""
    return SNAKEMAKE.parse_args(command.words[1:])


def expanded(words: list[str]) -> list[str]:
    """Expand braces like a shell."""
    printed = subprocess.run(["bash", "-c", f"echo {' '.join(words)}"], text=True, capture_output=True, check=True)
    return printed.stdout.split()


@every_command
def test_a_command_has_known_arguments(command):
    program, *arguments = command.words
    if program == "snakemake":
        options = parsed(command)
        for profile in options.profile or []:
            assert (ROOT / profile / "config.yaml").exists()
        load_project({**CONFIG, **settings(options)}, ROOT / "config")
    elif program == "nme":
        verbs = typer.main.get_command(app).commands
        if arguments != ["--version"]:
            verbs[arguments[0]].make_context(arguments[0], arguments[1:])
    elif program == "make":
        variables = set(re.findall(r"^(\w+) \?=", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
        assert {word.partition("=")[0] for word in arguments if "=" in word} <= variables
        targets = [word for word in arguments if "=" not in word]
        subprocess.run(["make", "--dry-run", *targets], cwd=ROOT, check=True, capture_output=True)
    elif program == "pip":
        assert arguments[0] == "install"
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for word in arguments[1:]:
            where = re.fullmatch(r"(--editable|\.(\[(?P<extras>[\w,]+)\])?)", word)
            assert where, f"{word} is not this project"
            assert set((where["extras"] or "").split(",")) <= {"", *project["optional-dependencies"]}
    elif program.startswith("python"):
        if arguments[0] == "-c":
            compile(arguments[1], command.place, "exec")
        elif arguments[0] == "-m":
            assert importlib.util.find_spec(arguments[1])
        else:
            assert (ROOT / arguments[0]).is_file()
    else:
        assert program in OTHERS, "say here how to check it"


def settings(options) -> dict:
    return {key: yaml.safe_load(value) for key, _, value in (text.partition("=") for text in options.config or [])}


def test_every_target_of_snakemake_exists(project):
    """One dry run for all targets of figures, at the tiny scale, and one for each scale whose results are named."""
    for block in blocks("yaml"):  # files that a page adds to the project
        path, _, text = block.text.partition("\n")
        (project.folder / path.removeprefix("# ")).write_text(text, encoding="utf-8")
    targets: dict[str, set[str]] = {}
    for command in of("snakemake"):
        for target in expanded(parsed(command).targets or []):
            named = re.match(r"results/(\w+)/", target)
            targets.setdefault(named[1] if named else "tiny", set()).add(target)
    assert {"figures", "all", "figures/fig5.pdf", "figures/unnormalised.pdf"} <= targets["tiny"]
    for scale, wanted in targets.items():
        assert project.planned(*sorted(wanted), scale=scale)


# ------------------------------------------------------------------- links


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to the headings."""
    found: set[str] = set()
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        words = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        number, name = 0, slug
        while name in found:
            number += 1
            name = f"{slug}-{number}"
        found.add(name)
    return found


def problem(page: Path, target: str) -> str:
    """Why a link of a page leads nowhere, or nothing."""
    path, _, anchor = target.partition("#")
    goal = (page.parent / path).resolve() if path else page
    if not goal.exists():
        return f"{target}: no such file"
    return f"{target}: no such heading" if anchor and anchor not in anchors(goal) else ""


@every_page
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^()\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    wrong = [problem(page, link) for link in links if not re.match(r"https?:", link)]
    assert not any(wrong), [text for text in wrong if text]


@every_page
def test_named_files_exist(page):
    """Text in backticks that begins with a folder of the project."""
    if page.name == "CHANGELOG.md":
        return  # tells of the past, too
    folders = "benchmarks|config|containers|docs|profiles|src|tests|workflow"
    named = re.findall(rf"`((?:{folders})/[\w./-]*)`", page.read_text(encoding="utf-8"))
    made = re.compile(r"containers/nme-[\d.]+\.sif|docs/results/.*")
    assert [name for name in named if not (ROOT / name).exists() and not made.fullmatch(name)] == []


def test_references_from_other_files_lead_to_a_page():
    """Messages and comments name pages from the project's folder: docs/cluster.md#the-image."""
    folders = ("src", "tests", "workflow", "config", "profiles", "containers", "benchmarks")
    endings = (".py", ".smk", ".yaml", ".def")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*") if file.suffix in endings]
    found = []
    for file in [*files, ROOT / "Makefile", ROOT / "workflow/Snakefile", ROOT / "pyproject.toml"]:
        for reference in re.findall(r"\b((?:docs|config)/[\w-]+\.md(?:#[\w-]+)?)", file.read_text(encoding="utf-8")):
            found.append(reference)
            assert not (wrong := problem(ROOT / "README.md", reference)), f"{file}: {wrong}"
    assert "docs/cluster.md#the-image" in found


def test_the_index_has_every_page():
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    for page in (page for page in PAGES if page.is_relative_to(ROOT / "docs")):
        name = str(page.relative_to(ROOT / "docs"))
        assert name == "README.md" or f"]({name})" in index


# ------------------------------------------------------------------ tables


def first_cells(page: str, section: str) -> list[str]:
    """Text in backticks in the first column of the first table of a section."""
    text = (ROOT / page).read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("|")]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


def test_tables_name_what_there_is():
    project = load_project({"scale": "tiny"}, ROOT / "config")
    assert sorted(first_cells("docs/figures.md", "Targets")) == sorted(f"figures/{n}.pdf" for n in project.figures)
    scales = {path.stem for path in (ROOT / "config/scales").glob("*.yaml")}
    assert set(first_cells("docs/figures.md", "Scales")) == scales
    assert set(first_cells("docs/curvature.md", "Estimators")) <= set(curvature.__all__)


def test_the_table_of_methods_has_every_method_and_its_cost():
    text = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|.*\| (\S+) \| ([\d.]+) \|$", text, re.MULTILINE)
    parsed = {name: METHODS.parse(name) for name, _, _ in rows}
    assert set(parsed) == set(METHODS)
    for name, symbol, cost in rows:
        assert symbol == (parsed[name].symbol or "–")
        assert float(cost) == round(parsed[name].gradients, 1)


def test_the_front_page_stays_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
