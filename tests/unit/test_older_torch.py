"""Slow: the library in an environment of its own, beside an older PyTorch than the lock file's."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TORCH = "2.13.0"
TESTS = ("curvature_operators", "curvature_estimators", "products", "taylor", "methods")


@pytest.fixture(scope="module")
def older(tmp_path_factory) -> Path:
    """The Python of an environment with this PyTorch and what `pip install .` brings."""
    folder = tmp_path_factory.mktemp("older")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin/python"
    install = [python, "-m", "pip", "install", "--quiet"]
    subprocess.run([*install, f"torch=={TORCH}"], check=True)
    subprocess.run([*install, str(ROOT)], check=True)
    return python


def said(python: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | more
    return subprocess.run([python, *arguments], cwd=python.parent, env=environment, text=True, capture_output=True)


def test_the_library_comes_without_the_pipeline(older):
    names = "from importlib.metadata import distributions as d; print(*sorted(x.name.lower() for x in d()))"
    brought = set(said(older, "-c", names).stdout.split())
    assert {"nme", "torch", "numpy", "scipy"} <= brought
    assert not brought & {"snakemake", "pandas", "pyarrow", "typer", "pydantic", "matplotlib", "torchvision"}
    done = said(older, "-c", "import nme.curvature, nme.methods, torch; print(torch.__version__)")
    assert done.stdout.startswith(TORCH), done.stderr
    done = said(older, "-m", "nme", "--version")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "pip install '.[workflow]'" in done.stderr


def test_the_unit_tests_of_the_library_pass(older):
    """With the tests' own packages from this environment; PyTorch comes first, from the other one."""
    run = f"import sys; sys.path.append({sysconfig.get_path('purelib')!r}); import pytest; sys.exit(pytest.main())"
    files = [str(ROOT / f"tests/unit/test_{name}.py") for name in TESTS]
    # Those of jobs need the pipeline.
    options = f"-p no:cacheprovider --rootdir={ROOT} -q -k 'not test_jobs'"
    done = said(older, "-c", run, PYTEST_ADDOPTS=" ".join([options, *files]), PYTHONPATH=str(ROOT / "src"))
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    assert "[100%]" in done.stdout
