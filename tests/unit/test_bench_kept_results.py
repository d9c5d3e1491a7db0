"""The table of kept results is what the archives say."""

import json
import tarfile

import kept_results
import pyarrow as pa
import pyarrow.parquet as pq
import pytest


def test_the_page_has_each_archives_row():
    page = (kept_results.RESULTS / "README.md").read_text(encoding="utf-8")
    archives = sorted(kept_results.RESULTS.glob("*/members.tar.xz"))
    assert archives
    for archive in archives:
        assert f"| {' | '.join(kept_results.row(archive))} |" in page


def test_a_suspended_job_does_not_count(tmp_path):
    archive = tmp_path / "scale" / "members.tar.xz"
    archive.parent.mkdir()
    recipe = {"dataset": "digits"}
    versions = {"nme": "1", "python": "3", "torch": "2", "device": "cpu"}
    data = {part: {"sha256": "0123456789abcdef"} for part in ("train", "test")}
    with tarfile.open(archive, "w:xz") as files:
        for seed, seconds in enumerate([3600, 3600, 36000]):
            record = {"spec": {"recipe": recipe, "seeds": [seed]}, "data": data, "seconds": seconds, **versions}
            schema = pa.schema([("x", pa.int64())], metadata={"nme": json.dumps(record)})
            pq.write_table(pa.table({"x": [1]}, schema=schema), tmp_path / "metrics.parquet")
            files.add(tmp_path / "metrics.parquet", f"results/scale/train/mlp/gelu/sam/0.1/seed={seed}/metrics.parquet")
    assert kept_results.core_hours(kept_results.records(archive)) == pytest.approx(3)
    assert kept_results.row(archive)[1:5] == ["3, 0", "3", "3", "3.0"]
    assert kept_results.row(archive)[-1] == "digits 0123456789ab, 0123456789ab"
