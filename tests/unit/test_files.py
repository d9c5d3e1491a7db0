"""Outputs appear whole or not at all, also on a full disk."""

import errno
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from specs import spec_in_memory

from nme import cli
from nme.config.project import load_project
from nme.grid.cells import Cell
from nme.grid.specs import train_spec
from nme.outputs import parquet
from nme.outputs.files import atomic

ROOT = Path(__file__).parents[2]


def write(target: Path, text: str, error: BaseException | None = None) -> None:
    """Write atomically; with an error, stop half-way."""
    with atomic(target) as temporary:
        temporary.write_text(text)
        if error:
            raise error


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# ------------------------------------------------------------------ atomic


def test_success_makes_the_file(tmp_path):
    target = tmp_path / "deep" / "er" / "a.txt"
    with atomic(target) as temporary:
        temporary.write_text("new")
        # Beside the target, so that the rename stays on one disk; libraries choose a format by the ending.
        assert temporary.parent == target.parent
        assert temporary.suffix == ".txt"
        assert not target.exists()
    assert target.read_text() == "new"
    assert files_in(tmp_path) == ["deep/er/a.txt"]


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with atomic(target) as temporary:
        temporary.write_text("ne")
        assert target.read_text() == "old"
    assert target.read_text() == "ne"


@pytest.mark.parametrize(
    "error", [ValueError("no"), OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
@pytest.mark.parametrize("old", [None, "old"])
def test_failure_leaves_what_was_there(tmp_path, error, old):
    target = tmp_path / "a.txt"
    if old:
        target.write_text(old)
    with pytest.raises(type(error)):
        write(target, "half", error)
    assert files_in(tmp_path) == (["a.txt"] if old else [])
    assert old is None or target.read_text() == old


def test_failure_after_the_block_leaves_what_was_there(tmp_path, monkeypatch):
    """Some disks say only at the very end that they are full."""

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "a.txt", "whole")
    assert files_in(tmp_path) == []


def test_a_folder_in_the_way_is_an_error_and_stays(tmp_path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(IsADirectoryError):
        write(tmp_path / "a.txt", "new")
    assert files_in(tmp_path) == []


def test_two_writers_do_not_meet(tmp_path):
    target = tmp_path / "a.txt"
    with atomic(target) as one, atomic(target) as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert target.read_text() == "one"
    assert files_in(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o027, 0o640), (0o077, 0o600)])
def test_the_mode_follows_the_umask(tmp_path, umask, mode):
    """Results belong to the group as the user wishes; a temporary file alone would be private."""
    before = os.umask(umask)
    try:
        with atomic(tmp_path / "a.txt") as temporary:
            temporary.write_text("new")
        assert os.umask(umask) == umask, "the umask itself is unchanged"
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == mode


# --------------------------------------------------------------- full disk


class FullDisk:
    """A tiny disk; ``fill`` leaves no block free."""

    def __init__(self, path: Path):
        self.path = path

    def fill(self) -> None:
        free = shutil.disk_usage(self.path).free
        (self.path / "filler").write_bytes(bytes(free))
        assert shutil.disk_usage(self.path).free == 0

    def results(self) -> list[str]:
        return [name for name in files_in(self.path) if name != "filler"]


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(path)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"a small disk is needed, and there is no mount command: {error}")
    if done.returncode:
        pytest.skip(f"a small disk is needed, and mounting one is not permitted here: {done.stderr.strip()}")
    try:
        yield FullDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)  # a process may still be ending


def nme(*arguments: str) -> subprocess.CompletedProcess:
    command = [str(Path(sys.executable).with_name("nme")), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def assert_one_message_about_space(code: int, out: str, error: str) -> None:
    assert code != 0
    assert "Traceback" not in out + error
    messages = [line for line in error.splitlines() if not re.match(r"seed \d+ +epoch", line)]
    assert len(messages) == 1
    assert messages[0].startswith("nme: error: ")
    assert "No space left on device" in messages[0]


def test_a_full_disk_leaves_nothing(disk):
    disk.fill()
    with pytest.raises(OSError, match="No space left"):
        write(disk.path / "a.txt", "long" * 25_000)
    assert disk.results() == []


def test_a_full_disk_keeps_an_older_table(disk):
    path = disk.path / "a.parquet"
    parquet.write(pa.table({"x": [1, 2, 3]}), path, {"n": 1})
    disk.fill()
    with pytest.raises(OSError, match="No space left"):
        parquet.write(pa.table({"x": list(range(10_000))}), path, {"n": 2})
    assert disk.results() == ["a.parquet"]
    table, record = parquet.read(path)
    assert (table["x"].to_pylist(), record) == ([1, 2, 3], {"n": 1})


DIGITS = spec_in_memory("digits", 100, 50)


def train_settings() -> str:
    project = load_project({"scale": "tiny"}, ROOT / "config")
    cell = Cell.of("digits_mlp", "relu", "sgd", 0)
    return json.dumps(train_spec(project.scale.recipes["digits_mlp"], cell, range(1), []).as_json())


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """The manifest of a small prepared dataset."""
    from nme.datasets.base import Places
    from nme.stages.prepare import prepare

    folder = tmp_path_factory.mktemp("digits")
    prepare(DIGITS, Places(), folder)
    return folder / "manifest.json"


def test_prepare_on_a_full_disk(disk):
    done = nme(
        "prepare",
        "--spec",
        json.dumps(DIGITS.as_json() | {"train": None, "test": None}),
        "--output",
        disk.path / "data",
    )
    assert_one_message_about_space(done.returncode, done.stdout, done.stderr)
    assert disk.results() == []


def test_train_on_a_full_disk(disk, digits):
    disk.fill()
    output = disk.path / "metrics.parquet"
    done = nme("train", "--spec", train_settings(), "--data", digits, "--output", output)
    assert_one_message_about_space(done.returncode, done.stdout, done.stderr)
    assert disk.results() == []


def test_a_checkpoint_on_a_full_disk(disk, digits, monkeypatch, capsys):
    """PyTorch raises a RuntimeError where the disk is full; to the user it is the same mistake."""
    disk.fill()
    command = ["nme", "train", "--spec", train_settings(), "--data", digits, "--checkpoint-seconds", "0"]
    monkeypatch.setattr(sys, "argv", [*map(str, command), "--output", str(disk.path / "metrics.parquet")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert_one_message_about_space(ended.value.code, *capsys.readouterr())
    assert disk.results() == []
