"""Jobs that an earlier run left in SLURM's queue are named, and no others."""

import pytest

from nme.errors import NmeError
from nme.workflow.slurm import check_earlier_jobs

RUN = "0c1d8a2e-5f3b-4c6d-9e7f-112233445566"


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """A stand-in for SLURM's command; a function that says what it prints."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def prints(*lines: str, code: int = 0) -> None:
        listed = "".join(f"echo '{line}'\n" for line in lines)
        (tmp_path / "squeue").write_text(f"#!/bin/sh\n{listed}exit {code}\n")
        (tmp_path / "squeue").chmod(0o755)

    return prints


def test_jobs_of_an_earlier_run_are_named(squeue, tmp_path):
    squeue(f"12|{RUN}|{tmp_path}", f"13|mine_{RUN}|{tmp_path}")
    with pytest.raises(NmeError, match=r"still in the queue: 12, 13\. .*`scancel 12 13`"):
        check_earlier_jobs(tmp_path)


def test_other_jobs_do_not_matter(squeue, tmp_path):
    squeue(f"12|{RUN}|/elsewhere", f"13|interactive|{tmp_path}")
    check_earlier_jobs(tmp_path)


def test_the_executor_complains_where_there_is_no_queue(squeue, tmp_path):
    check_earlier_jobs(tmp_path)


def test_a_queue_that_does_not_answer_is_said(squeue, tmp_path):
    squeue(code=1)
    with pytest.raises(NmeError, match="squeue fails"):
        check_earlier_jobs(tmp_path)
