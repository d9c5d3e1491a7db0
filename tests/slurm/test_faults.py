"""Slow: what clusters do to jobs and drivers, on a real SLURM. Nothing finished is lost or made twice."""

import signal

import pandas as pd
import pytest
from slurm_clone import slurm, wait_until

from nme.grid.cells import Cell
from nme.grid.paths import metrics_path
from nme.outputs.parquet import read

pytestmark = pytest.mark.slow

CELL = Cell.of("mnist1d_cnn", "gelu", "grad_norm", 0.1)
TARGET = metrics_path("tiny", CELL, range(2))
LOG = f"logs/tiny/train/{CELL.path}/seed=0-1.log"


def epochs(clone, count: int, **recipe) -> None:
    """Set the number of epochs; two members take about 15 ms each per epoch on a fast machine."""
    clone.edit("config/scales/tiny.yaml", lambda s: s["recipes"]["mnist1d_cnn"].update(epochs=count, **recipe))


def metrics(clone, path: str = TARGET) -> pd.DataFrame:
    return read(clone.folder / path)[0].to_pandas().drop(columns="seconds")


def assert_as_uninterrupted(clone) -> None:
    """The same job, run here from the beginning, without a cluster, ends with the same bits."""
    found = metrics(clone)
    (clone.folder / TARGET).unlink()
    clone.run(TARGET, extra=("--executor", "local", "--cores", "1"))
    assert "continuing" not in (clone.folder / LOG).read_text()
    pd.testing.assert_frame_equal(metrics(clone), found, check_exact=True)


def begun(clone) -> bool:
    log = clone.folder / LOG
    return log.exists() and "epoch" in log.read_text()


def continued(clone) -> bool:
    log = clone.folder / LOG
    return log.exists() and "continuing from the resume checkpoint" in log.read_text()


def assert_continued_after_scancel(clone) -> None:
    driver = clone.start(TARGET)
    wait_until(lambda: begun(clone), 240, "training has begun")
    slurm("scancel", *clone.queue("RUNNING"))
    clone.finish(driver, 400)
    assert continued(clone)
    assert sorted(clone.states()) == ["CANCELLED", "COMPLETED", "COMPLETED"]  # with the preparation of the data


def test_a_cancelled_job_is_continued(clone):
    epochs(clone, 300)
    assert_continued_after_scancel(clone)
    assert_as_uninterrupted(clone)


def test_a_cancelled_job_is_continued_inside_the_image(clone_inside):
    epochs(clone_inside, 600)
    assert_continued_after_scancel(clone_inside)


def test_a_job_at_its_time_limit_is_continued_with_more_time(clone):
    epochs(clone, 3500, runtime_minutes=1)  # about two minutes
    clone.edit("profiles/slurm/config.yaml", lambda profile: profile.update(retries=5))  # for slow machines
    driver = clone.start(TARGET)
    # Looked for while it runs: SLURM may call an attempt late that ended by itself just then, and the next starts anew.
    wait_until(lambda: continued(clone), 600, "an attempt continues an earlier one")
    clone.finish(driver, 900)
    states = clone.states()
    assert states.count("TIMEOUT") >= 1
    assert states[-1] == "COMPLETED"
    limits = [job["TimelimitRaw"] for job in clone.history("TimelimitRaw") if job["State"] != "COMPLETED"]
    assert limits[0] == "1"


def test_a_killed_driver_loses_and_repeats_nothing(clone):
    epochs(clone, 60)
    cells = [
        Cell.of("mnist1d_cnn", name, "grad_norm", 0.1) for name in ("relu", "gelu", "leaky_relu", "beta_gelu-beta=2")
    ]
    targets = [metrics_path("tiny", cell, range(2)) for cell in cells]

    def made() -> list[str]:
        return [t for t in targets if (clone.folder / t).exists()]

    driver = clone.start(*targets, start_new_session=True)
    wait_until(made, 180, "a job is done")
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    left = clone.queue()
    assert left, "jobs go on without the driver"
    assert "--unlock" in clone.run(*targets, ok=False)
    clone.run(*targets, extra=("--unlock",))
    text = clone.run(*targets, ok=False)
    assert "SLURM jobs of an earlier run from this folder are still in the queue" in text
    wait_until(lambda: not clone.queue(), 180, "the jobs are done")
    times = {t: (clone.folder / t).stat().st_mtime_ns for t in made()}
    clone.run(*targets)
    assert made() == targets
    assert {t: (clone.folder / t).stat().st_mtime_ns for t in times} == times
    assert clone.states() == ["COMPLETED"] * (1 + len(targets)), "the data, and each training once"


def test_the_third_attempt_has_enough_memory(clone):
    enforced = "OverMemoryKill" in slurm("scontrol", "show", "config")
    if not enforced:
        pytest.skip("this SLURM does not enforce memory (SLURM_TEST_ENFORCE_MEM=1)")
    # Each attempt may use 600 MB more; what runs there needs about 1500 MB.
    epochs(clone, 3, memory_mb=600)
    hog = "import time; held = b'1' * (1100 << 20); time.sleep(6)"
    clone.replace("workflow/rules/train.smk", '"exec nme train', f'"python -c \\"{hog}\\" && nme train')
    clone.finish(clone.start(TARGET), 300)
    jobs = clone.history("ReqMem")
    assert [job["ReqMem"].rstrip("c") for job in jobs[1:]] == ["600M", "1200M", "1800M"]
    assert [state == "COMPLETED" for state in clone.states()] == [True, False, False, True]


def test_a_drained_node_and_a_second_driver(clone):
    node = slurm("sinfo", "--noheader", "--format=%n", "--partition=cpu").split()[0]
    slurm("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
    try:
        driver = clone.start(TARGET)
        wait_until(lambda: clone.queue("PENDING"), 60, "a job waits")
        assert "locked" in clone.run(TARGET, ok=False)
    finally:
        slurm("scontrol", "update", f"nodename={node}", "state=resume")
    clone.finish(driver, 180)
    assert clone.states() == ["COMPLETED", "COMPLETED"]
