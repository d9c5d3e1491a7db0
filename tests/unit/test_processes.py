"""One and three processes that share a training, for every method: the same network after five steps."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from dense_reference import flat, relative_error
from torch import distributed

from nme.config.scale import Recipe
from nme.data.in_memory import Data
from nme.errors import NmeError
from nme.methods import METHODS
from nme.runtime import device, processes
from nme.runtime.random_streams import stream
from nme.training.member import Job, Member

RECIPE = {
    "dataset": "digits",
    "model": {"name": "cnn", "channels": [3, 4], "kernel": 3, "stride": 2, "batch_norm": True},
    "augment": "crop_flip",
    "epochs": 2,
    "batch_size": 24,
    "micro_batch": 4,
    "learning_rate": 0.05,
    "weight_decay": 0.01,
}
STEPS = 5  # over the end of an epoch, where the networks are evaluated


def trained() -> dict[str, dict]:
    """The state and the rows after five steps, by method; in as many processes as there are."""
    pixels = stream(0, "pixels")
    inputs, labels = torch.randint(256, (103, 1, 8, 8), generator=pixels), torch.arange(103) % 3
    data = Data(inputs.byte(), labels, torch.full((1, 1, 1), 120.0), torch.full((1, 1, 1), 70.0))
    recipe = Recipe(**RECIPE, processes=processes.world())
    found = {}
    for name, method in METHODS.items():
        job = Job(recipe, "gelu", method(**_defaults(method)), 0.05, data, data, 3, torch.device("cpu"))
        member = Member(job, 0)
        for _ in range(STEPS):
            member.advance()
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in member.rows]
        found[name] = {"state": member.model.state_dict(), "rows": rows}
    return found


def _defaults(method):
    return {key: parameter.default for key, parameter in method.parameters.items()}


@pytest.fixture(scope="module")
def alone():
    return trained()


def test_three_processes_train_the_network_that_one_trains(alone, tmp_path):
    world = 3
    environment = {**os.environ, "STORE": str(tmp_path / "store"), "WORLD_SIZE": str(world)}
    running = [
        subprocess.Popen([sys.executable, __file__, str(tmp_path)], env={**environment, "RANK": str(rank)})
        for rank in range(world)
    ]
    assert [process.wait(timeout=300) for process in running] == [0] * world
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world)]
    for name, expected in alone.items():
        for rank in range(world):
            state, rows = found[rank][name]["state"], found[rank][name]["rows"]
            assert rows == found[0][name]["rows"], "all have the same records"
            assert all(torch.equal(state[key], found[0][name]["state"][key]) for key in state), "and the same network"
            assert relative_error(flat(state.values()), flat(expected["state"].values())) < 1e-5, name
            assert len(rows) == 1
            for key, value in expected["rows"][0].items():
                assert rows[0][key] == pytest.approx(value, rel=1e-5), (name, key)


@pytest.mark.parametrize("world", range(1, 7))
def test_shares_are_all_of_it(world, monkeypatch):
    monkeypatch.setattr(processes, "world", lambda: world)
    seen = []
    for rank in range(world):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        seen += [processes.share(6)]
    assert [i for share in seen for i in share] == list(range(6))
    assert max(map(len, seen)) - min(map(len, seen)) <= 1


@pytest.mark.parametrize(("before", "after"), [(None, "2,3"), ("4,5,6,7", "6,7")])
def test_a_jobs_processes_see_gpus_of_their_own(before, after, monkeypatch, tmp_path):
    """The first two GPUs have another job."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(uuid=f"uuid-{i}"))
    monkeypatch.setattr(device.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(device, "_places", [])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before or "")  # undone at the end of the test
    device.take_places(2, [f"uuid-{i}" for i in range(4)], tmp_path)
    device.reserve_gpus(2)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == after


def test_another_number_of_processes_than_the_recipes_is_an_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(NmeError, match="there are 3 processes, but the recipe's processes is 2"):
        processes.join(2, torch.device("cpu")).__enter__()


if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    store = distributed.FileStore(os.environ["STORE"], int(os.environ["WORLD_SIZE"]))
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=int(os.environ["WORLD_SIZE"]))
    torch.set_num_threads(1)
    torch.save(trained(), folder / f"{rank}.pt")
    distributed.destroy_process_group()  # gloo's threads abort a process that ends without it
