"""Reading of Snakemake's log by ``benchmarks/wall_time.py``."""

import pytest
import wall_time

LOG = """
Provided cores: 2
Select jobs to execute...
[Tue Nov 24 07:51:49 2026]
localrule train:
    output: results/tiny/train/a/metrics.parquet
    jobid: 10
[Tue Nov 24 07:51:50 2026]
localrule plot:
    jobid: 4
[Tue Nov 24 07:52:00 2026]
Finished jobid: 10 (Rule: train)
[Tue Nov 24 07:52:03 2026]
Finished jobid: 4 (Rule: plot)
Elapsed time: 0:01:16.500000
"""


@pytest.fixture
def root(tmp_path):
    (tmp_path / ".snakemake" / "log").mkdir(parents=True)
    return tmp_path


def write(root, name, text=LOG):
    path = root / ".snakemake" / "log" / f"{name}.snakemake.log"
    path.write_text(text)
    return path


def test_a_run_in_its_log(root):
    run = wall_time.read_log(write(root, "2026-11-24T075147.500000"))
    assert (run.elapsed, run.planning, run.cores) == (76.5, 2.0, 2)
    assert run.seconds == {"train": [11.0], "plot": [13.0]}


def test_a_run_that_has_not_ended_is_none(root):
    assert wall_time.read_log(write(root, "2026-11-24T075147.500000", LOG.replace("Elapsed", "elapsed"))) is None


def test_two_runs_are_one_if_together_they_trained_everything(root):
    write(root, "2026-11-24T065147.500000")  # of before
    write(root, "2026-11-24T075147.500000")
    write(root, "2026-11-24T075147.600000")
    run = wall_time.latest_runs(root, "tiny", jobs=2)
    assert run.elapsed == 153.0
    assert run.seconds["train"] == [11.0, 11.0]
    with pytest.raises(SystemExit, match="tells of 3 training jobs at scale 'tiny', and 5"):
        wall_time.latest_runs(root, "tiny", jobs=5)


def test_core_seconds_add_up():
    run = wall_time.Run(elapsed=100.0, planning=2.0, cores=2, seconds={"train": [90.0, 60.0], "plot": [5.0]})
    train = wall_time.Stage(jobs=2, whole=149.5, recorded=140.0, epochs=130.0)
    rows = wall_time.rows_of(run, train, wall_time.Stage(), evaluation=10.0)
    assert sum(seconds for _, _, seconds in rows) == pytest.approx(200.0)
    assert rows[0] == ("training steps", 2, 120.0)
