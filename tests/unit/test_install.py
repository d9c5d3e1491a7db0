"""Contents of an installation: the library alone, the pipeline with `workflow`, exact versions with the lock file."""

import hashlib
import importlib.metadata as metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from nme.outputs import provenance

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LIBRARY = [Requirement(text) for text in PROJECT["dependencies"]]
WORKFLOW = [Requirement(text) for text in PROJECT["optional-dependencies"]["workflow"]]


def python(code: str, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run([sys.executable, "-c", code, *arguments], env=environment, text=True, capture_output=True)


def test_the_lock_file_satisfies_every_requirement():
    text = (ROOT / "requirements.lock").read_text()
    locked = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE))
    for requirement in LIBRARY + WORKFLOW:
        version = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} is not met by {version}: make lock"


def test_the_lock_file_has_a_hash_for_every_package():
    packages = re.split(r"^(?=[\w.-]+==)", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE)[1:]
    assert len(packages) > 50
    assert all("--hash=sha256:" in package for package in packages)


# ----------------------------------------------------------------- library


def needed(requirements: list[Requirement]) -> set[str]:
    """Distributions that pip would install here for these requirements."""
    found: set[str] = set()
    left = [(r, extra) for r in requirements for extra in ("", *r.extras)]
    while left:
        requirement, extra = left.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        if name in found:
            continue
        found.add(name)
        for text in metadata.requires(name) or []:
            left += [(Requirement(text), wanted) for wanted in ("", *requirement.extras)]
    return found


BLOCKED = """
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

absent = set(sys.argv.pop(1).split())
sys.meta_path.insert(0, Absent())
"""


@pytest.fixture(scope="module")
def absent() -> str:
    """Modules of the packages that torch, numpy and scipy do not bring."""
    brought = needed(LIBRARY)
    assert {"torch", "numpy", "scipy", "sympy"} <= brought
    modules = metadata.packages_distributions()
    names = {m for m, of in modules.items() if not brought & {canonicalize_name(d) for d in of}} - {"nme"}
    assert {"snakemake", "pandas", "pyarrow", "typer", "pydantic", "yaml"} <= names
    return " ".join(names)


def test_the_library_works_without_the_pipelines_packages(absent):
    code = """
import torch
import nme.methods
from nme.curvature import Curvature
net = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.GELU(), torch.nn.Linear(5, 3)).double()
data = torch.randn(8, 4).double(), torch.randint(3, (8,))
found = Curvature(net, torch.nn.CrossEntropyLoss(), data)
products = found.products(torch.randn(found.size).double())
print(float((products.hessian - products.gauss_newton - products.nme).norm()), float(products.nme.norm()))
"""
    done = python(BLOCKED + code, absent)
    assert done.returncode == 0, done.stderr
    difference, size = map(float, done.stdout.split())
    assert difference < 1e-12 < size


@pytest.mark.parametrize("missing", ["typer", "pyarrow"])
def test_a_verb_without_the_pipelines_packages_says_what_to_install(missing, tmp_path):
    code = "from nme.__main__ import main; main()"
    done = python(BLOCKED + code, missing, "tables", "--spec", "{}", "--output", str(tmp_path / "table.parquet"))
    assert done.returncode == 1
    assert done.stderr == f"nme: error: '{missing}' is not installed; run pip install '.[workflow]' in a clone of nme\n"


def test_importing_changes_no_environment_variable():
    code = "import os; before = dict(os.environ); import nme.curvature, nme.methods; print(before == dict(os.environ))"
    assert python(code).stdout == "True\n"


# -------------------------------------------------------------- provenance


@pytest.fixture
def lock(tmp_path, monkeypatch):
    """A lock file of the versions that are installed here."""
    path = tmp_path / "requirements.lock"
    lines = [
        f"{name}=={metadata.version(name)} ; python_version > '3' \\\n    --hash=sha256:0\n"
        for name in provenance.COMPUTING
    ]
    path.write_text("# made by a test\n" + "".join(lines))
    monkeypatch.setattr(provenance, "LOCK", path)
    provenance.lock_file.cache_clear()
    yield path
    provenance.lock_file.cache_clear()


def test_a_result_names_the_lock_file_whose_versions_computed_it(lock):
    assert provenance.provenance({}, 1.0)["lock_file"] == hashlib.sha256(lock.read_bytes()).hexdigest()[:12]


@pytest.mark.parametrize("package", ["torch", "numpy", "scipy"])
def test_with_another_version_a_result_names_no_lock_file(lock, package):
    lock.write_text(lock.read_text().replace(f"{package}==", f"{package}==1"))
    assert provenance.provenance({}, 1.0)["lock_file"] == "none"


def test_without_a_lock_file_a_result_names_none(lock):
    lock.unlink()
    assert provenance.provenance({}, 1.0)["lock_file"] == "none"


# ------------------------------------------------------------------ public CI


def test_public_ci_runs_targets_of_the_makefile_on_the_oldest_python():
    job = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["check"]
    assert PROJECT["requires-python"] == f">={job['strategy']['matrix']['python'][0]}"
    targets = [word for step in job["steps"] for word in step.get("run", "make").split()[1:2]]
    assert {"lint", "test", "all"} <= set(targets)
    makefile = (ROOT / "Makefile").read_text()
    for target in targets:
        assert re.search(rf"^([^\t#]* )?{re.escape(target)}( [^:]*)?:", makefile, re.MULTILINE), target
