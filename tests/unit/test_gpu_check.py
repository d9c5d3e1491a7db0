"""The command that checks a GPU, rehearsed on a CPU: what it needs, catches and leaves behind, and its time."""

import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import gpu
import numpy as np
import pytest
import torch
from gpu_check import fast, groups, needs, report, reproducible, right, timing, true
from gpu_check.networks import NETWORKS, QUICK, TINY_WRN, data_of, endless, member_of, network, recipe_of
from gpu_check.pack import KEYS
from gpu_check.session import Session, products_in

from nme.config.scale import Recipe
from nme.errors import NmeError
from nme.grid.measured_steps import MeasuredSteps
from nme.methods import METHODS

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


class OnGpu(Session):
    """A session whose bars count, as on a GPU."""

    cuda = True


@pytest.fixture
def session(tmp_path):
    return Session(CPU, quick=True, folder=tmp_path, seconds=60)


def found(session, **wanted):
    return [row for row in session.rows if all(row[key] == value for key, value in wanted.items())]


# -------------------------------------------------------------- what it needs

BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1].split(","):
            raise ImportError(f"{name} is not there")
sys.meta_path.insert(0, Block())
sys.path[:0] = sys.argv[2:]
import gpu
from gpu_check import fast, groups, laptop, report, reproducible, right, true
"""
PIPELINE = "mnist1d,matplotlib,pandas,pyarrow,yaml,rich,sklearn,snakemake,typer"


def test_it_needs_nothing_of_the_pipeline():
    command = [sys.executable, "-c", BLOCKED, PIPELINE, str(ROOT / "benchmarks"), str(ROOT / "src")]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, text=True, capture_output=True, env=environment, cwd="/")
    assert done.returncode == 0, done.stderr


def test_all_that_is_missing_is_named_at_once(monkeypatch, capsys):
    versions = {
        "torch": "2.12.1+cu130",
        "numpy": "1.26.4",
        "scipy": "1.17.1",
        "pillow": "12.0",
        "torchvision": "0.29.1",
    }
    monkeypatch.setattr(needs, "_installed", versions.get)
    assert gpu.main([]) == 2
    message = capsys.readouterr().err
    for line in (
        "numpy 2.0 or newer (found 1.26.4)",
        "pydantic 2.9 or newer (found none)",
        "torchvision 0.27.* for PyTorch 2.12.1+cu130 (found 0.29.1)",
    ):
        assert line in message
    assert "scipy" not in message


def test_a_complete_machine_lacks_nothing():
    assert needs.missing() == []


def test_lowest_versions_are_those_of_the_project():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = [*project["dependencies"], *project["optional-dependencies"]["workflow"]]
    own = dict(text.partition(",")[0].split(">=") for text in listed)
    assert {name: own[name] for name in needs.needed() if name != "torchvision"} == {
        name: lowest for name, lowest in needs.needed().items() if name != "torchvision"
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_one_sentence(capsys, tmp_path):
    assert gpu.main(["--folder", str(tmp_path)]) == 2
    assert "gpu: error: device is 'cuda', but PyTorch finds no usable GPU here" in capsys.readouterr().err


# ------------------------------------------------------------- what it catches


def one_network(monkeypatch, name="MLP"):
    monkeypatch.setattr(right, "MODES", {name: ("train",)})
    monkeypatch.setattr(right, "sequence_models", dict)
    monkeypatch.setattr(right.groups, "check", lambda session: None)


def test_every_method_and_operator_is_compared(session, monkeypatch):
    one_network(monkeypatch)
    right.check(session)
    assert not session.failed
    assert {row["case"] for row in session.rows} == {*METHODS, "H v", "G v", "N v"}
    assert {row["quantity"] for row in session.rows} == {"fp32: error", "bf16: cosine"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_direction_fails(session, monkeypatch, dtype):
    one_network(monkeypatch)
    exact = right.direction
    calls = []

    def wrong(method, model, inputs, labels):
        value = exact(method, model, inputs, labels)
        # The third call for a method is that of float32 on the device, the fourth that of bf16.
        calls.append(method)
        at = {torch.float32: 3, torch.bfloat16: 4}[dtype]
        return value + 0.2 * value.norm() / len(value) ** 0.5 if method == "sam" and calls.count("sam") == at else value

    monkeypatch.setattr(right, "direction", wrong)
    right.check(session)
    assert [(row["case"], row["quantity"][:4]) for row in found(session, ok=False)] == [
        ("sam", "fp32" if dtype == torch.float32 else "bf16")
    ]
    assert session.failed


def test_an_exception_fails_and_the_next_check_goes_on(session, monkeypatch):
    one_network(monkeypatch, "no such network")
    monkeypatch.setattr(right, "MODES", {"no such network": ("train",), "MLP": ("train",)})
    right.check(session)
    assert [row["note"] for row in found(session, ok=False)] == ["KeyError: 'no such network'"]
    assert found(session, network="MLP, train mode", ok=True)


def test_a_missed_bar_of_speed_is_no_failure_of_the_run(session):
    session.add("fast", "network", "sam", "time over SGD", 5.0, 2.1, False)
    assert not session.failed
    session.add("reproducible", "network", "twice", "same bits", 0.0, 1, False)
    assert session.failed


def test_a_checksum_sees_the_last_bit():
    cell = reproducible.Cell("MLP", "sgd", {})
    members = [reproducible.new_member(cell, CPU, quick=True) for _ in range(3)]
    assert reproducible.checksum(members[0]) == reproducible.checksum(members[1])
    with torch.no_grad():
        first = members[2].parameters[0].view(-1)[:1]
        first.copy_(torch.nextafter(first, first + 1))
    assert reproducible.checksum(members[2]) != reproducible.checksum(members[0])


def test_a_killed_cell_continues_with_the_same_bits(tmp_path):
    cell = reproducible.Cell("CNN, 1-d", "hessian_trace", {})
    whole = reproducible.train(cell, CPU, tmp_path, True, "twice")
    assert reproducible.train(cell, CPU, tmp_path, True, "killed") == ""
    assert reproducible.train(cell, CPU, tmp_path, True, "resumed") == whole


def processes_that(*codes):
    return [subprocess.Popen([sys.executable, "-c", code]) for code in codes]


def test_a_process_that_fails_ends_the_others():
    running = processes_that("import sys; sys.exit(3)", "import time; time.sleep(60)")
    began = time.monotonic()
    assert groups._wait(running, 50) == "failed"
    assert time.monotonic() - began < 30
    assert all(process.returncode for process in running)
    assert groups._wait(processes_that("", ""), 50) == ""


def test_processes_that_never_meet_fail_unless_the_time_was_short(monkeypatch):
    sleeping = "import time; time.sleep(60)"
    assert groups._wait(processes_that(sleeping), 0.2) == groups.OUT_OF_TIME
    monkeypatch.setattr(groups, "LONGEST", 0.2)
    assert groups._wait(processes_that(sleeping), 0.2) == "no answer within 0.2 s"


@pytest.mark.filterwarnings("ignore")
def test_waits_for_the_device_are_counted(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(timing, "finish_queued_work", lambda device: None)

    def step():
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)
        warnings.warn("something else", UserWarning, stacklevel=1)

    places = timing.waits(step, torch.device("cuda"))
    assert [place.partition(":")[0] for place in places] == ["test_gpu_check.py"] * 2
    assert modes == ["warn", "default"]
    assert timing.waits(lambda: None, CPU) is None


def test_tf32_is_allowed_only_where_asked_for():
    for precision, allowed in (("tf32", True), ("bf16", False), ("fp32", False)):
        with products_in(precision):
            assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == allowed


# -------------------------------------------------------------------- its bars


@pytest.mark.parametrize(("over", "ok"), [(3.2, True), (3.4, False)])
def test_a_missed_bar_leaves_a_profile(tmp_path, over, ok):
    session = OnGpu(CPU, quick=False, folder=tmp_path, seconds=60)
    times = {"sgd": [0.1, 0.1], "grad_norm": [0.1 * over, 0.1 * over]}
    step = endless(member_of(recipe_of(TINY_WRN), data_of(TINY_WRN, 3, CPU), 10), "grad_norm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast.timing, "save_profile", lambda step, session, name: f"profile-{name}.txt")
        fast._report(session, "WideResNet-28-10", "fp32", "grad_norm", step, times, 10**12, 1e13)
    (row,) = found(session, quantity="time over SGD")
    assert (row["ok"], row["note"]) == (ok, "" if ok else "profile-WideResNet-28-10-fp32-grad_norm.txt")
    (row,) = found(session, quantity="part of the matmul peak")
    assert row["value"] == pytest.approx(10**12 / (0.1 * over) / 1e13)


def test_a_profile_names_what_takes_the_time(session):
    name = timing.save_profile(lambda: torch.ones(50, 50) @ torch.ones(50, 50), session, "product")
    assert "aten::mm" in (session.folder / name).read_text(encoding="utf-8")


def test_the_plain_loop_is_sgd():
    """One step with PyTorch's own layers and optimizer moves the parameters as ``nme train`` does."""
    data = data_of(TINY_WRN, 2, CPU)
    ours = member_of(recipe_of(TINY_WRN, learning_rate=0.5), data, 10)
    with pytest.MonkeyPatch.context() as patch:
        same = torch.arange(len(data.labels))
        patch.setattr(torch, "randperm", lambda n, generator=None, device=None: same)
        patch.setattr(fast, "deepcopy", lambda model: theirs.append(type(ours)(ours.job, 0).model) or theirs[-1])
        theirs = []
        fast.plain_loop(ours)()
        endless(ours, "sgd")()
    pairs = zip(ours.model.parameters(), theirs[0].parameters(), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in pairs)


def test_the_paper_networks_are_those_of_the_papers_scale():
    """So that measured steps are found by a plan."""
    import yaml

    scale = yaml.safe_load((ROOT / "config/scales/paper.yaml").read_text(encoding="utf-8"))
    for name, recipe in (("WideResNet-28-10", "cifar10_wrn_28_10"), ("ResNet-50", "imagenet_resnet50")):
        settings = scale["recipes"][recipe]
        assert settings["model"] == NETWORKS[name].model
        variants = [(v["precision"], v.get("channels_last", False)) for v in fast.VARIANTS.values()]
        assert (settings["precision"], settings["channels_last"]) in variants


def test_every_network_has_a_tiny_twin():
    assert QUICK.keys() == NETWORKS.keys()


# -------------------------------------------------------------------- its time


def test_without_time_everything_is_left_out_and_said(tmp_path):
    session = Session(CPU, quick=True, folder=tmp_path, seconds=0)
    began = time.monotonic()
    for check in (right.check, reproducible.check, fast.check):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(right, "sequence_models", dict)
            check(session)
    assert time.monotonic() - began < 10
    assert {row["part"] for row in found(session, quantity="skipped")} == {"right", "reproducible", "fast"}
    assert not session.failed


@pytest.fixture
def images(tmp_path):
    random = np.random.default_rng(0)
    file = tmp_path / "images.npz"
    arrays = [
        part
        for n in (40, 16)
        for part in (random.integers(0, 256, (n, 3, 8, 8), dtype=np.uint8), np.arange(n, dtype=np.uint8) % 10)
    ]
    np.savez(file, **dict(zip(KEYS, arrays, strict=True)))
    return file


def test_members_continue_in_a_later_call(images, tmp_path):
    def call(folder, lefts=None):
        session = Session(CPU, quick=True, folder=tmp_path / folder, seconds=60)
        session.folder.mkdir(exist_ok=True)
        if lefts:  # the time that each look at the clock finds
            session.left = lambda: lefts.pop(0)
        true.check(session, images)
        return session

    whole = call("whole")
    assert len(found(call("cut", [9, 9, 1]), quantity="test accuracy")) == 0
    assert (tmp_path / "cut/true.resume.pt").exists()
    later = call("cut")
    assert [row["value"] for row in found(later, quantity="test accuracy")] == [
        row["value"] for row in found(whole, quantity="test accuracy")
    ]
    assert not (tmp_path / "cut/true.resume.pt").exists()
    cells = json.loads((tmp_path / "cut/true.json").read_text(encoding="utf-8"))["members"]
    assert [row["cell"] for row in cells] == [list(cell) for cell in true.members()[:2]]


def test_members_are_those_of_figures_2_and_4():
    cells = true.members()
    assert len(cells) == len(set(cells)) == true.SEEDS * 14
    assert {cell.activation for cell in cells if cell.strength == 0} == {"relu", "gelu"}
    Recipe(**{"dataset": "cifar10", **true.RECIPE})


def test_packed_images_are_standardised_by_the_training_split(images):
    train, test = true.read(images, CPU)
    assert (len(train.labels), len(test.labels)) == (40, 16)
    values = train.inputs.double().transpose(0, 1).flatten(1)
    assert torch.allclose(train.mean.flatten().double(), values.mean(1), rtol=1e-5)
    assert torch.allclose(test.std.flatten().double(), values.std(1), rtol=1e-5)


def test_without_images_it_says_what_it_needs(tmp_path):
    session = Session(CPU, quick=False, folder=tmp_path, seconds=60)
    true.check(session, None)
    assert "needs --data FILE" in found(session, quantity="skipped")[0]["note"]


# ------------------------------------------------------- what it leaves behind


def test_one_part_alone_writes_its_numbers_and_a_table(tmp_path, capsys):
    arguments = ["--device", "cpu", "--quick", "--parts", "true", "--folder", str(tmp_path)]
    assert gpu.main(arguments) == 0
    written = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert written["quick"] is True
    assert {row["part"] for row in written["rows"]} == {"true"}
    import pyarrow.parquet as pq

    table = pq.read_table(tmp_path / "gpu.parquet")
    assert table.num_rows == len(written["rows"])
    assert table.column_names == list(report.COLUMNS)
    printed = capsys.readouterr().out
    assert "test accuracy" in printed
    assert "skipped: nothing" in printed


def test_a_failed_check_is_the_exit_code(tmp_path, monkeypatch):
    monkeypatch.setattr(right, "check", lambda session: session.add("right", "MLP", "sgd", "error", 1.0, 0.1, False))
    arguments = ["--device", "cpu", "--quick", "--parts", "right", "--folder", str(tmp_path)]
    assert gpu.main(arguments) == 1


def test_kept_step_times_are_those_that_a_plan_uses(session, tmp_path, monkeypatch):
    net = network("WideResNet-28-10", quick=True)
    times = {"sgd": [0.1], "grad_norm": [0.3]}
    for method in times:
        fast._report(session, "WideResNet-28-10", "tf32", method, lambda: None, times, 1, 1.0)
    report.write(session)
    with pytest.raises(NmeError, match="no step times of a GPU"):
        report.keep(tmp_path / "gpu.json")
    written = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    (tmp_path / "gpu.json").write_text(json.dumps({**written, "quick": False, "gpus": 1}), encoding="utf-8")
    table = tmp_path / "steps.json"
    table.write_text('[{"card": "another"}]\n', encoding="utf-8")
    for _ in range(2):  # the second time replaces the card's rows
        assert report.keep(tmp_path / "gpu.json", table) == 2
    rows = json.loads(table.read_text(encoding="utf-8"))
    assert [row["card"] for row in rows] == ["another", *[rows[1]["card"]] * 2]
    recipe = recipe_of(net, precision="tf32")
    assert MeasuredSteps(rows[1:]).seconds(recipe, net.shape, "grad_norm") == pytest.approx(0.3)
