"""Resume checkpoints: a job that was stopped ends with the metrics that it would have had."""

import json
import os
import random
import signal
from pathlib import Path

import pytest
import torch

from nme import grid, parquet
from nme.checkpoint import Checkpoint, StopRequest
from nme.config import load_project
from nme.datasets import Places
from nme.errors import Interrupted
from nme.prepare import prepare
from nme.train import Member, train

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")

IDENTITY = {"settings": "abc", "data": "def", "device": "cpu", "version of PyTorch": "2"}
STATE = {
    "rows": [{"seed": 0, "epoch": 1, "test_loss": 0.1, "train_loss": None, "diverged": False}],
    "member": {"model": {"0.weight": torch.arange(6.0).view(2, 3), "0.n": torch.tensor(3)}, "step": 7},
    "seconds": 1.5,
}


@pytest.fixture
def checkpoint(tmp_path) -> Checkpoint:
    return Checkpoint(tmp_path / "seed=0" / "resume.pt", IDENTITY, every_seconds=60)


def assert_starts_over(checkpoint: Checkpoint, *parts: str) -> None:
    state, sentence = checkpoint.load()
    assert state is None
    assert len(sentence.splitlines()) == 1
    for part in [str(checkpoint.path), "starting over", *parts]:
        assert part in sentence


# ---------------------------------------------------------- save and load


def test_there_and_back(checkpoint):
    checkpoint.save(STATE)
    state, sentence = checkpoint.load()
    torch.testing.assert_close(state["member"].pop("model"), STATE["member"]["model"], rtol=0, atol=0)
    assert state == {**STATE, "member": {"step": 7}}
    assert sentence == f"{checkpoint.path}: continuing from the resume checkpoint"


def test_without_a_file_there_is_nothing_to_say(checkpoint):
    assert checkpoint.load() == (None, "")


def test_saving_replaces_and_leaves_nothing_else(checkpoint):
    checkpoint.save(STATE)
    checkpoint.save({**STATE, "seconds": 2.5})
    assert checkpoint.load()[0]["seconds"] == 2.5
    assert [path.name for path in checkpoint.path.parent.iterdir()] == ["resume.pt"]


def test_a_failed_save_keeps_the_older_one(checkpoint):
    checkpoint.save(STATE)
    with pytest.raises(Exception, match=r"pickle|lambda"):
        checkpoint.save({**STATE, "rows": lambda: None})
    assert checkpoint.load()[0]["seconds"] == 1.5
    assert [path.name for path in checkpoint.path.parent.iterdir()] == ["resume.pt"]


def test_removal(checkpoint):
    checkpoint.save(STATE)
    checkpoint.remove()
    assert not checkpoint.path.exists()
    checkpoint.remove()  # a job that never saved


def test_it_is_due_after_its_time(checkpoint, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    checkpoint = Checkpoint(checkpoint.path, IDENTITY, every_seconds=60)
    assert not checkpoint.due()
    now += 59
    assert not checkpoint.due()
    now += 1
    assert checkpoint.due()
    checkpoint.save(STATE)
    assert not checkpoint.due()


# ----------------------------------------------------------- starting over


def test_a_truncated_file_starts_over(checkpoint):
    checkpoint.save(STATE)
    whole = checkpoint.path.read_bytes()
    for n in [0, 1, 4, *range(50, len(whole), 50), len(whole) - 1]:
        checkpoint.path.write_bytes(whole[:n])
        assert_starts_over(checkpoint, "damaged")


def test_a_damaged_file_never_ends_a_job(checkpoint):
    """Any byte may be wrong. Where that shows, the job starts over; it must not fail at each retry."""
    checkpoint.save(STATE)
    whole = checkpoint.path.read_bytes()
    choose = random.Random(0)
    for _ in range(600):
        damaged = bytearray(whole)
        damaged[choose.randrange(len(whole))] ^= 1 << choose.randrange(8)
        checkpoint.path.write_bytes(damaged)
        state, sentence = checkpoint.load()
        assert (state is None) == ("starting over" in sentence)


@pytest.mark.parametrize("content", [b"garbage" * 50, b"\x80\x02}q\x00.", b"PK\x03\x04" + bytes(100)])
def test_another_file_starts_over(checkpoint, content):
    checkpoint.path.parent.mkdir()
    checkpoint.path.write_bytes(content)
    assert_starts_over(checkpoint, "damaged")


@pytest.mark.parametrize(
    "content",
    [[1], 5, None, {}, {"identity": IDENTITY}, {"state": STATE}, {"identity": None, "state": STATE},
     {"identity": [1], "state": STATE}],
    ids=lambda v: str(v)[:30],
)  # fmt: skip
def test_something_else_that_torch_saved_starts_over(checkpoint, content):
    checkpoint.path.parent.mkdir()
    torch.save(content, checkpoint.path)
    assert_starts_over(checkpoint, "damaged")


def test_code_in_a_checkpoint_is_not_run(checkpoint, tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)

    checkpoint.path.parent.mkdir()
    torch.save({"identity": IDENTITY, "state": Attack()}, checkpoint.path)
    assert_starts_over(checkpoint, "damaged")
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("key", IDENTITY)
def test_another_identity_starts_over_and_is_named(checkpoint, key):
    Checkpoint(checkpoint.path, {**IDENTITY, key: "other"}, 60).save(STATE)
    assert_starts_over(checkpoint, f"another {key};")


def test_all_differences_are_named(checkpoint):
    Checkpoint(checkpoint.path, {**IDENTITY, "data": "other", "device": "cuda"}, 60).save(STATE)
    assert_starts_over(checkpoint, "another data, device;")


def test_an_identity_that_says_less_starts_over(checkpoint):
    Checkpoint(checkpoint.path, {"settings": "abc"}, 60).save(STATE)
    assert_starts_over(checkpoint, "another data, device, version of PyTorch;")


# ------------------------------------------------------ SIGTERM and SIGINT


@pytest.fixture(params=StopRequest.SIGNALS, ids=lambda number: number.name)
def previous(request):
    """A signal, a handler of our own for it, and what that has caught."""
    caught = []

    def handler(number, frame):
        caught.append(number)

    before = signal.signal(request.param, handler)
    yield request.param, handler, caught
    signal.signal(request.param, before)


def test_preemption_and_ctrl_c_are_heard():
    assert set(StopRequest.SIGNALS) == {signal.SIGTERM, signal.SIGINT}


def test_a_signal_is_noted_and_the_handler_restored(previous):
    number, handler, caught = previous
    with StopRequest() as stop:
        assert stop.received is None
        os.kill(os.getpid(), number)
        assert stop.received == number.name
    assert caught == []
    assert signal.getsignal(number) is handler
    os.kill(os.getpid(), number)
    assert caught == [number]


def test_the_handler_is_restored_also_after_an_error(previous):
    number, handler, _ = previous
    with pytest.raises(ZeroDivisionError), StopRequest():
        raise ZeroDivisionError
    assert signal.getsignal(number) is handler


# ---------------------------------------------------------- a training job

SEEDS, EPOCHS, STEPS = 2, 3, 3  # 50 examples, batches of 16


def settings(**changes) -> dict:
    recipe = load_project({"scale": "tiny"}, ROOT / "config").scale.recipes["digits_mlp"]
    recipe = recipe.model_copy(update={"batch_size": 16, "epochs": EPOCHS, **changes})
    cell = grid.Cell.of("digits_mlp", "gelu", "grad_norm", 0.1)
    return json.loads(json.dumps(grid.train_spec(recipe, cell, range(SEEDS))))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    prepare({"dataset": "digits", "train": 50, "test": 20, "version": 1}, Places(), folder)
    return folder / "manifest.json"


def metrics(path: Path) -> list[dict]:
    """All but the time it took."""
    return parquet.read(path)[0].drop_columns("seconds").to_pylist()


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory) -> list[dict]:
    output = tmp_path_factory.mktemp("undisturbed") / "metrics.parquet"
    train(settings(), data, output, CPU)
    return metrics(output)


def stop_after(monkeypatch, step: int, number: signal.Signals = signal.SIGTERM) -> None:
    """A signal during the job's step of that number."""
    advance, taken = Member.advance, []

    def stopping(self):
        row = advance(self)
        taken.append(row)
        if len(taken) == step:
            os.kill(os.getpid(), number)
        return row

    monkeypatch.setattr(Member, "advance", stopping)


# The first step; in an epoch; its end; the end of a member; in the next member; the very last step.
@pytest.mark.parametrize("step", [1, 4, 6, 9, 13, 18])
def test_stopped_and_continued_is_as_undisturbed(data, undisturbed, tmp_path, monkeypatch, step):
    output, said = tmp_path / "metrics.parquet", []
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        with pytest.raises(Interrupted):
            train(settings(), data, output, CPU, log=said.append)
    assert said == []
    assert [path.name for path in tmp_path.iterdir()] == ["resume.pt"], "no metrics of half a job"
    again = []
    train(settings(), data, output, CPU, log=said.append, report=again.append)
    assert said == [f"{tmp_path / 'resume.pt'}: continuing from the resume checkpoint"]
    assert metrics(output) == undisturbed
    assert len(again) == SEEDS * EPOCHS - step // STEPS, "only what was left is trained"
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.parquet"]


@pytest.mark.parametrize("number", StopRequest.SIGNALS, ids=lambda number: number.name)
def test_a_stopped_job_says_by_what_and_where_its_state_is(data, tmp_path, monkeypatch, number):
    before = signal.getsignal(number)
    stop_after(monkeypatch, 4, number)
    with pytest.raises(Interrupted) as stopped:
        train(settings(), data, tmp_path / "metrics.parquet", CPU)
    assert number.name in str(stopped.value)
    assert str(tmp_path / "resume.pt") in str(stopped.value)
    assert signal.getsignal(number) is before


def test_stopped_at_every_step(data, undisturbed, tmp_path, monkeypatch):
    """Preempted again and again, a job still gets on, and to the same end."""
    output = tmp_path / "metrics.parquet"
    for step in range(1, SEEDS * EPOCHS * STEPS + 1):
        with monkeypatch.context() as patch:
            stop_after(patch, 1)
            with pytest.raises(Interrupted):
                train(settings(), data, output, CPU, log=lambda sentence: None)
        assert not output.exists(), step
    left = []
    train(settings(), data, output, CPU, log=lambda sentence: None, report=left.append)
    assert left == [], "nothing is left to train"
    assert metrics(output) == undisturbed


def stopped(data: Path, folder: Path, monkeypatch) -> Path:
    """The checkpoint of a job that was stopped in its second member."""
    with monkeypatch.context() as patch:
        stop_after(patch, 13)
        with pytest.raises(Interrupted):
            train(settings(), data, folder / "metrics.parquet", CPU)
    return folder / "resume.pt"


def test_a_truncated_checkpoint_starts_over_with_the_same_metrics(data, undisturbed, tmp_path, monkeypatch):
    path, said = stopped(data, tmp_path, monkeypatch), []
    path.write_bytes(path.read_bytes()[:-100])
    train(settings(), data, tmp_path / "metrics.parquet", CPU, log=said.append)
    assert said == [f"{path}: the resume checkpoint is damaged; starting over"]
    assert metrics(tmp_path / "metrics.parquet") == undisturbed
    assert not path.exists()


def test_other_settings_start_over(data, tmp_path, monkeypatch):
    path, said = stopped(data, tmp_path, monkeypatch), []
    changed = settings(learning_rate=0.01)
    train(changed, data, tmp_path / "metrics.parquet", CPU, log=said.append)
    assert said == [f"{path}: the resume checkpoint has another settings; starting over"]
    train(changed, data, tmp_path / "fresh" / "metrics.parquet", CPU)
    assert metrics(tmp_path / "metrics.parquet") == metrics(tmp_path / "fresh" / "metrics.parquet")


def test_other_data_start_over(data, tmp_path, monkeypatch):
    path, said = stopped(data, tmp_path, monkeypatch), []
    prepare({"dataset": "digits", "train": 60, "test": 20, "version": 1}, Places(), tmp_path / "data")
    train(settings(), tmp_path / "data" / "manifest.json", tmp_path / "metrics.parquet", CPU, log=said.append)
    assert said == [f"{path}: the resume checkpoint has another data; starting over"]
