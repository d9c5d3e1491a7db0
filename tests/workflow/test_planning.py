"""`snakemake -n` from an empty tree: no data, image or GPU is needed."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from workflow_project import ROOT, jobs

# The fixture ``finished`` makes every file of the tiny scale.
SCALES = sorted(path.stem for path in (ROOT / "config/scales").glob("*.yaml") if path.stem != "tiny")
FIGURES = sorted(path.stem for path in (ROOT / "config/figures").glob("*.yaml"))


@pytest.mark.parametrize("scale", SCALES)
def test_every_figure_is_planned_at_every_scale(project, scale):
    planned = project.planned("all", scale=scale)
    assert planned["plot"] == len(FIGURES)
    assert planned["train"] >= 12
    assert not (project.folder / "results").exists()


def test_without_a_target_all_figures_are_planned(project):
    planned = jobs(project.run("snakemake", "-n", "--config", "scale=laptop"))
    assert planned.pop("default") == 1
    assert planned == jobs(project.run("snakemake", "-n", "--config", "scale=laptop", "--", "all"))


def test_a_figure_is_a_target_and_wants_only_its_own_cells(project):
    planned = project.planned("figures/fig2.pdf", scale="laptop")
    scale = yaml.safe_load((ROOT / "config/scales/laptop.yaml").read_text())
    recipes = scale["panels"]["all"]
    datasets = {scale["recipes"][recipe]["dataset"] for recipe in recipes}
    cells = len(recipes) * 2 * len(scale["axes"]["rho"])  # activations: 2; one job trains all seeds of a cell
    assert planned == {"prepare": len(datasets), "train": cells, "tables": 1, "plot": 1}


def test_the_slurm_profile_plans_the_papers_scale_on_gpus(project):
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        pytest.skip("snakemake-executor-plugin-slurm is not installed")
    if shutil.which("apptainer") is None:
        pytest.skip("no apptainer on the PATH")
    text = project.run("snakemake", "--profile", "slurm", "-n", "figures/fig2.pdf")
    assert jobs(text)["train"] == 3 * 2 * 8 * 5  # one seed a job
    wanted = [line for line in text.splitlines() if "slurm_partition=gpu" in line]
    assert len(wanted) == 240
    assert sum(line.endswith(", gpu=8") for line in wanted) == 80, "ImageNet"
    assert sum(line.endswith(", gpu=1") for line in wanted) == 160
    assert "results/paper/" in text


def test_the_profile_of_a_machine_with_gpus(project):
    text = project.run("snakemake", "--profile", "profiles/gpus", "-n", "figures/fig2.pdf")
    assert jobs(text)["train"] == 2 * 8 * 5
    assert text.count("gpu=1") == 80, "one GPU per job"
    assert "results/workstation/" in text


def test_planning_needs_no_torch(project):
    blocked = "import sys; sys.modules.update(torch=None, torchvision=None, sklearn=None, mnist1d=None)\n"
    code = blocked + "from nme.config.project import load_project\nfrom nme.grid.paths import sources\n"
    code += "p = load_project({'scale': 'laptop'})\n"
    code += "print(sum(len(sources(p, name)) for name in p.figures))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=project.folder,
        env=project.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) > 12


# One that reading the configuration finds, one that the rules' settings do; tests/unit has the others.
@pytest.mark.parametrize(
    ("path", "change", "message"),
    [
        (
            "config/config.yaml",
            lambda c: c.update(scael="tiny"),
            "unknown key 'scael'; did you mean 'scale'?",
        ),
        (
            "config/figures/claims.yaml",
            lambda c: c["claims"]["list"][0]["contrasts"][0].update(plus=["gleu/sgd"]),
            "did you mean 'gelu'?",
        ),
    ],
)
def test_a_mistake_is_one_message_before_any_job(project, path, change, message):
    project.edit(path, change)
    text = project.dry_run("figures", ok=False)
    assert message in text
    assert Path(path).name in text or "claims: contrast" in text
    assert "Traceback" not in text
    assert "Job stats" not in text


def test_an_unknown_figure_is_one_message(project):
    text = project.dry_run("figures/fig99.pdf", ok=False)
    assert "No rule to produce figures/fig99.pdf" in text
    assert "Traceback" not in text
    assert "Job stats" not in text


@pytest.mark.parametrize("path", ["tables/fig1.parquet", "landscape/fig2.parquet"])
def test_a_file_that_no_figure_has_is_no_target(project, path):
    text = project.run("snakemake", "-n", "--config", "scale=tiny", "--", f"results/tiny/{path}", ok=False)
    assert f"No rule to produce results/tiny/{path}" in text
    assert "Traceback" not in text


def test_a_mistake_in_the_path_of_a_job_is_one_message(project):
    path = "results/tiny/train/mnist1d_cnn/gleu/sgd/0/seed=0/metrics.parquet"
    text = project.run("snakemake", "-n", "--config", "scale=tiny", "--", path, ok=False)
    assert "unknown activation 'gleu'; did you mean 'gelu'?" in text
    assert "ValidationError" not in text
    assert "Job stats" not in text
