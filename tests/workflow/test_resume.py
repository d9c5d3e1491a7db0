"""A training job that is killed continues, and ends with the results of an uninterrupted one, to the last bit."""

import json
import signal
import subprocess
import time

import pandas as pd
import psutil
import pytest
import torch

from nme.config.project import load_project
from nme.grid.cells import Cell
from nme.grid.paths import metrics_path
from nme.grid.specs import train_spec
from nme.outputs.parquet import read

CELL = Cell.of("mnist1d_cnn", "gelu", "grad_norm", 0.1)
MANIFEST = "results/tiny/data/mnist1d/manifest.json"
AT = [0, 0.4, 1]  # when networks are kept


def spec(project, seeds=range(2), epochs=12, **recipe):
    scale = load_project({"scale": "tiny"}, project.folder / "config").scale
    chosen = scale.recipes["mnist1d_cnn"].model_copy(update={"epochs": epochs, **recipe})
    return json.dumps(train_spec(chosen, CELL, seeds, AT).as_json())


def command(project, settings, output):
    # Saved at every step, so that a job killed at any time has something to continue from.
    every = ("--checkpoint-seconds", "0")
    return ("nme", "train", "--spec", settings, "--data", MANIFEST, "--output", str(output), *every)


def metrics(project, path) -> pd.DataFrame:
    table, _ = read(project.folder / path)
    return table.to_pandas().drop(columns="seconds")


def networks(project, path) -> dict[str, dict]:
    """Snapshots of a job by file name."""
    folder = (project.folder / path).with_name("snapshots")
    return {file.name: torch.load(file) for file in folder.iterdir()}


def assert_same_networks(found: dict[str, dict], expected: dict[str, dict]) -> None:
    assert set(found) == set(expected)
    for name, snapshot in found.items():
        assert snapshot["step"] == expected[name]["step"]
        for key, tensor in snapshot["model"].items():
            assert torch.equal(tensor, expected[name]["model"][key])


def kill_half_way(project, settings, output, how) -> subprocess.Popen:
    """Start the job and stop it in the second member's epochs."""
    job = subprocess.Popen(
        command(project, settings, output),
        cwd=project.folder,
        env=project.environment(),
        text=True,
        stderr=subprocess.PIPE,
    )
    for line in job.stderr:
        if line.startswith("seed 1  epoch 4/"):
            break
    job.send_signal(how)
    job.wait(timeout=60)
    job.stderr.close()
    assert (project.folder / output).with_name("resume.pt").exists()
    assert not (project.folder / output).exists()
    return job


@pytest.fixture(scope="module")
def prepared(trained, tmp_path_factory):
    return trained.copy(tmp_path_factory.mktemp("resume") / "project")


@pytest.fixture(scope="module")
def uninterrupted(prepared):
    prepared.run(*command(prepared, spec(prepared), "straight/metrics.parquet"))
    return metrics(prepared, "straight/metrics.parquet")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_two_processes_killed_then_run_again(prepared, how):
    shared = spec(prepared, processes=2, micro_batch=4, batch_size=40)
    straight, output = f"two-{how.name}-straight/metrics.parquet", f"two-{how.name}/metrics.parquet"
    prepared.run(*command(prepared, shared, straight))
    job = kill_half_way(prepared, shared, output, how)
    assert job.returncode == (-signal.SIGKILL if how == signal.SIGKILL else 75)
    gone = time.monotonic() + 20
    while any(output in " ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])):
        assert time.monotonic() < gone, "a process goes on alone"
        time.sleep(0.2)
    text = prepared.run(*command(prepared, shared, output))
    assert "continuing from the resume checkpoint" in text
    pd.testing.assert_frame_equal(metrics(prepared, output), metrics(prepared, straight))
    assert_same_networks(networks(prepared, output), networks(prepared, straight))
    assert not (prepared.folder / output).with_name("resume.pt").exists()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_killed_then_run_again(prepared, uninterrupted, how):
    output = f"{how.name}/metrics.parquet"
    job = kill_half_way(prepared, spec(prepared), output, how)
    assert job.returncode == (-signal.SIGKILL if how == signal.SIGKILL else 75)
    text = prepared.run(*command(prepared, spec(prepared), output))
    assert "continuing from the resume checkpoint" in text
    assert "seed 0" not in text  # the finished member was not trained again
    pd.testing.assert_frame_equal(metrics(prepared, output), uninterrupted, check_exact=True)
    kept = networks(prepared, output)
    assert len(kept) == 2 * len(AT)
    assert_same_networks(kept, networks(prepared, "straight/metrics.parquet"))
    assert {p.name for p in (prepared.folder / output).parent.iterdir()} == {"metrics.parquet", "snapshots"}


def test_the_same_job_started_twice_is_done_once(prepared, uninterrupted):
    """The jobs of a killed driver continue while its successor starts the same ones."""
    output = "twice/metrics.parquet"

    def start() -> subprocess.Popen:
        options = {"cwd": prepared.folder, "env": prepared.environment(), "text": True, "stderr": subprocess.PIPE}
        return subprocess.Popen(command(prepared, spec(prepared), output), **options)

    first = start()
    assert "epoch" in first.stderr.readline()
    first.send_signal(signal.SIGSTOP)  # so that it is not done before its successor begins
    second = start()
    assert "waiting for the process that holds this lock" in second.stderr.readline()
    first.send_signal(signal.SIGCONT)
    texts = [job.communicate(timeout=120)[1] for job in (first, second)]
    assert [job.returncode for job in (first, second)] == [0, 0], texts
    assert "written by the other process; nothing to do" in texts[1]
    assert "epoch" not in texts[1]
    pd.testing.assert_frame_equal(metrics(prepared, output), uninterrupted, check_exact=True)
    assert {p.name for p in (prepared.folder / output).parent.iterdir()} == {"metrics.parquet", "snapshots"}


def test_snakemake_continues_a_job_that_was_killed(trained, tmp_path):
    project = trained.copy(tmp_path / "project")
    # Long enough to be caught; the same change is made to nothing else.
    project.edit("config/scales/tiny.yaml", lambda scale: scale["recipes"]["mnist1d_cnn"].update(epochs=30))
    target = metrics_path("tiny", CELL, range(2))
    resume = (project.folder / target).with_name("resume.pt")
    snakefile = project.folder / "workflow/rules/train.smk"
    snakefile.write_text(snakefile.read_text().replace("nme train ", "nme train --checkpoint-seconds 0 "))
    driver = subprocess.Popen(
        ["snakemake", "--cores", "1", "--config", "scale=tiny", "--", target],
        cwd=project.folder,
        env=project.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not resume.exists():
        assert time.monotonic() < deadline
        assert driver.poll() is None
        time.sleep(0.01)
    jobs = [p for p in psutil.Process(driver.pid).children(recursive=True) if "train" in p.cmdline()]
    assert jobs
    for job in jobs:
        job.kill()
    assert driver.wait(timeout=60) != 0
    assert not (project.folder / target).exists()
    assert resume.exists()
    project.snakemake(target)
    log = project.folder / "logs/tiny/train" / CELL.path / "seed=0-1.log"
    assert "continuing from the resume checkpoint" in log.read_text()
    _, record = read(project.folder / target)
    project.run(*command(project, json.dumps(record["spec"]), "straight/metrics.parquet"))
    found, expected = metrics(project, target), metrics(project, "straight/metrics.parquet")
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
