"""Resume checkpoints and snapshots: a job that was stopped ends with the results that it would have had."""

import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch
from specs import spec_in_memory

from nme.activations import ACTIVATIONS
from nme.config.project import load_project
from nme.datasets.base import Places
from nme.errors import Interrupted, NmeError
from nme.grid.cells import Cell
from nme.grid.specs import TrainSpec, train_spec
from nme.outputs import parquet
from nme.runtime.random_streams import derived_seed
from nme.stages.prepare import prepare
from nme.stages.train import train
from nme.training.checkpoint import Checkpoint, StopRequest
from nme.training.member import Member
from nme.training.snapshots import Snapshots, read_snapshot

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
    assert_starts_over(checkpoint, f"different {key};")


def test_all_differences_are_named(checkpoint):
    Checkpoint(checkpoint.path, {**IDENTITY, "data": "other", "device": "cuda"}, 60).save(STATE)
    assert_starts_over(checkpoint, "different data, device;")


def test_an_identity_that_says_less_starts_over(checkpoint):
    Checkpoint(checkpoint.path, {"settings": "abc"}, 60).save(STATE)
    assert_starts_over(checkpoint, "different data, device, version of PyTorch;")


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
    assert set(StopRequest.SIGNALS) == {signal.SIGTERM, signal.SIGUSR1, signal.SIGINT}


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
AT = {0: 0, 0.5: 4, 1: 9}  # when networks are kept, and the step that is; half way is within an epoch


def settings(snapshots=tuple(AT), seeds=range(SEEDS), **changes) -> TrainSpec:
    recipe = load_project({"scale": "tiny"}, ROOT / "config").scale.recipes["digits_mlp"]
    recipe = recipe.model_copy(update={"batch_size": 16, "epochs": EPOCHS, **changes})
    cell = Cell.of("digits_mlp", "gelu", "grad_norm", 0.1)
    return train_spec(recipe, cell, seeds, list(snapshots))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    prepare(spec_in_memory("digits", 50, 20), Places(), folder)
    return folder / "manifest.json"


def metrics(path: Path) -> list[dict]:
    """All but the time it took."""
    return parquet.read(path)[0].drop_columns("seconds").to_pylist()


def networks(folder: Path) -> dict[str, dict]:
    """Snapshots of a job by file name: the step and the network's tensors."""
    return {path.name: torch.load(path) for path in (folder / "snapshots").iterdir()}


def assert_same_networks(folder: Path, expected: dict[str, dict]) -> None:
    """To the last bit."""
    found = networks(folder)
    assert set(found) == set(expected)
    for name, snapshot in found.items():
        assert snapshot["step"] == expected[name]["step"]
        assert_same_tensors(snapshot["model"], expected[name]["model"])


def assert_same_tensors(found: dict, expected: dict) -> None:
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory) -> Path:
    """The folder of a job that nothing disturbed."""
    folder = tmp_path_factory.mktemp("straight")
    train(settings(), data, folder / "metrics.parquet", CPU)
    return folder


@pytest.fixture(scope="module")
def undisturbed(straight) -> list[dict]:
    return metrics(straight / "metrics.parquet")


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
def test_stopped_and_continued_is_as_undisturbed(data, straight, undisturbed, tmp_path, monkeypatch, step):
    output, said = tmp_path / "metrics.parquet", []
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        with pytest.raises(Interrupted):
            train(settings(), data, output, CPU, log=said.append)
    assert said == []
    assert names_in(tmp_path) == {"resume.pt", "snapshots.partial"}, "no metrics of half a job"
    again = []
    train(settings(), data, output, CPU, log=said.append, report=again.append)
    assert said == [f"{tmp_path / 'resume.pt'}: continuing from the resume checkpoint"]
    assert metrics(output) == undisturbed
    assert_same_networks(tmp_path, networks(straight))
    assert len(again) == SEEDS * EPOCHS - step // STEPS, "only what was left is trained"
    assert names_in(tmp_path) == {"metrics.parquet", "snapshots"}


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("number", StopRequest.SIGNALS, ids=lambda number: number.name)
def test_a_stopped_job_says_by_what_and_where_its_state_is(data, tmp_path, monkeypatch, number):
    before = signal.getsignal(number)
    stop_after(monkeypatch, 4, number)
    with pytest.raises(Interrupted) as stopped:
        train(settings(), data, tmp_path / "metrics.parquet", CPU)
    assert number.name in str(stopped.value)
    assert str(tmp_path / "resume.pt") in str(stopped.value)
    assert signal.getsignal(number) is before


def test_stopped_at_every_step(data, straight, undisturbed, tmp_path, monkeypatch):
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
    assert_same_networks(tmp_path, networks(straight))


def stopped(data: Path, folder: Path, monkeypatch, step: int = 13) -> Path:
    """The checkpoint of a job that was stopped, in its second member if nothing else is said."""
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        with pytest.raises(Interrupted):
            train(settings(), data, folder / "metrics.parquet", CPU)
    return folder / "resume.pt"


def test_a_truncated_checkpoint_starts_over_with_the_same_results(data, straight, undisturbed, tmp_path, monkeypatch):
    path, said = stopped(data, tmp_path, monkeypatch), []
    path.write_bytes(path.read_bytes()[:-100])
    train(settings(), data, tmp_path / "metrics.parquet", CPU, log=said.append)
    assert said == [f"{path}: the resume checkpoint is damaged; starting over"]
    assert metrics(tmp_path / "metrics.parquet") == undisturbed
    assert_same_networks(tmp_path, networks(straight))
    assert not path.exists()


def test_other_settings_start_over(data, tmp_path, monkeypatch):
    path, said = stopped(data, tmp_path, monkeypatch), []
    changed = settings(learning_rate=0.01)
    train(changed, data, tmp_path / "metrics.parquet", CPU, log=said.append)
    assert said == [f"{path}: the resume checkpoint was written with different settings; starting over"]
    train(changed, data, tmp_path / "fresh" / "metrics.parquet", CPU)
    assert metrics(tmp_path / "metrics.parquet") == metrics(tmp_path / "fresh" / "metrics.parquet")
    assert_same_networks(tmp_path, networks(tmp_path / "fresh"))


def test_other_data_start_over(data, tmp_path, monkeypatch):
    path, said = stopped(data, tmp_path, monkeypatch), []
    prepare(spec_in_memory("digits", 60, 20), Places(), tmp_path / "data")
    train(settings(), tmp_path / "data" / "manifest.json", tmp_path / "metrics.parquet", CPU, log=said.append)
    assert said == [f"{path}: the resume checkpoint was written with different data; starting over"]


# ------------------------------------------------------------- snapshots


def initial(seed: int) -> dict:
    """The state of a network that is not trained yet."""
    recipe = load_project({"scale": "tiny"}, ROOT / "config").scale.recipes["digits_mlp"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "init"))
        return recipe.model.build((1, 8, 8), 10, ACTIVATIONS.parse("gelu")).state_dict()


@pytest.mark.parametrize("seed", range(SEEDS))
def test_snapshots_are_the_networks_of_their_steps(data, straight, tmp_path, monkeypatch, seed):
    """Compared with checkpoints of other jobs, stopped at those steps, and with a network that is not trained."""
    for at, step in AT.items():
        snapshot = read_snapshot(straight / "snapshots", seed, at)
        assert snapshot["step"] == step
        if step == 0:
            assert_same_tensors(snapshot["model"], initial(seed))
            continue
        path = stopped(data, tmp_path / str(at), monkeypatch, seed * EPOCHS * STEPS + step)
        member = torch.load(path)["state"]["member"]
        assert member["seed"] == seed
        assert_same_tensors(snapshot["model"], member["model"])


def test_keeping_networks_changes_no_metrics(data, undisturbed, tmp_path):
    train(settings(snapshots=[]), data, tmp_path / "metrics.parquet", CPU)
    assert metrics(tmp_path / "metrics.parquet") == undisturbed
    assert list((tmp_path / "snapshots").iterdir()) == [], "an empty folder: Snakemake expects it"


def test_a_member_does_not_depend_on_the_seeds_that_share_its_job(data, straight, undisturbed, tmp_path):
    train(settings(seeds=range(1, 2)), data, tmp_path / "metrics.parquet", CPU)
    assert metrics(tmp_path / "metrics.parquet") == [row for row in undisturbed if row["seed"] == 1]
    assert_same_networks(tmp_path, {k: v for k, v in networks(straight).items() if k.startswith("seed=1")})


def test_two_fractions_of_one_step_are_both_kept(data, tmp_path):
    train(settings(snapshots=[0.99, 1], epochs=1), data, tmp_path / "metrics.parquet", CPU)
    for seed in range(SEEDS):
        almost, end = (read_snapshot(tmp_path / "snapshots", seed, at) for at in (0.99, 1))
        assert almost["step"] == end["step"] == STEPS
        assert_same_tensors(almost["model"], end["model"])


@pytest.mark.parametrize("epochs", [1, EPOCHS], ids=["at the end", "before the end"])
def test_a_diverged_member_has_no_networks_from_then_on(data, tmp_path, epochs):
    """It diverges in its first epoch, and is not trained further."""
    diverging = settings(learning_rate=1e30, snapshots=[0, 1], epochs=epochs)
    train(diverging, data, tmp_path / "metrics.parquet", CPU)
    assert [row["diverged"] for row in metrics(tmp_path / "metrics.parquet")] == [True] * SEEDS
    for seed in range(SEEDS):
        assert_same_tensors(read_snapshot(tmp_path / "snapshots", seed, 0)["model"], initial(seed))
        assert read_snapshot(tmp_path / "snapshots", seed, 1) is None


def test_a_network_that_is_not_finite_is_not_kept(data, tmp_path):
    """Also within the epoch at whose end the member counts as diverged."""
    diverging = settings(learning_rate=1e30, snapshots=[0.2])
    train(diverging, data, tmp_path / "metrics.parquet", CPU)
    for seed in range(SEEDS):
        snapshot = read_snapshot(tmp_path / "snapshots", seed, 0.2)
        assert snapshot is None or all(tensor.isfinite().all() for tensor in snapshot["model"].values())


def test_what_an_earlier_job_left_is_not_taken_over_by_a_fresh_one(tmp_path):
    """Only one that continues from a checkpoint takes it over."""
    network = torch.nn.Linear(2, 2)
    for seed, fresh in ((0, True), (1, False), (2, True)):
        snapshots = Snapshots(tmp_path / "snapshots", [0], 10, fresh)
        snapshots.take(seed, 0, network)
        kept = {path.name for path in snapshots.partial.iterdir()}
        assert kept == ({"seed=0-at=0.pt", "seed=1-at=0.pt"} if seed == 1 else {f"seed={seed}-at=0.pt"})
    assert not snapshots.folder.exists()
    snapshots.folder.mkdir()
    (snapshots.folder / "old").touch()
    snapshots.finish()
    assert names_in(tmp_path) == {"snapshots"}
    assert names_in(snapshots.folder) == {"seed=2-at=0.pt"}


def test_only_the_steps_that_are_due_are_kept(tmp_path):
    snapshots = Snapshots(tmp_path / "snapshots", [0, 0.25, 1], 8, fresh=True)
    for step in range(9):
        snapshots.take(3, step, torch.nn.Linear(2, 2))
    snapshots.finish()
    found = {at: read_snapshot(snapshots.folder, 3, at)["step"] for at in snapshots.at}
    assert found == {0: 0, 0.25: 2, 1: 8}
    assert len(names_in(snapshots.folder)) == 3


def test_a_snapshot_of_another_member_or_time_is_not_there(straight):
    assert read_snapshot(straight / "snapshots", SEEDS, 0) is None
    assert read_snapshot(straight / "snapshots", 0, 0.25) is None


@pytest.mark.parametrize("content", [b"", b"garbage" * 50, None], ids=["empty", "garbage", "truncated"])
def test_a_damaged_snapshot_is_one_message(straight, tmp_path, content):
    folder = tmp_path / "snapshots"
    shutil.copytree(straight / "snapshots", folder)
    path = folder / "seed=1-at=0.5.pt"
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(NmeError) as caught:
        read_snapshot(folder, 1, 0.5)
    assert str(caught.value) == f"{path}: damaged. Delete {folder} and train again."


def test_a_missing_folder_of_snapshots_is_one_message(tmp_path):
    with pytest.raises(NmeError, match=r"snapshots: missing\. Train first\."):
        read_snapshot(tmp_path / "snapshots", 0, 0)


def test_what_a_killed_process_half_wrote_is_deleted(tmp_path):
    """Also among the networks; anything else stays."""
    partial = tmp_path / "snapshots.partial"
    partial.mkdir()
    for path in (tmp_path / ".partial-x1-resume.pt", partial / ".partial-x2-seed=0-at=0.pt", tmp_path / "mine.txt"):
        path.write_bytes(b"half")
    snapshots = Snapshots(tmp_path / "snapshots", [0], 10, fresh=False)
    Checkpoint(tmp_path / "resume.pt", {}, 60)
    snapshots.finish()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine.txt", "snapshots"]
