"""Two processes with a model in DistributedDataParallel: the direction of one process with the whole batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dense_reference import relative_error
from test_own_loops import CASES, LOSSES, STRENGTH, batch_for, grads, net
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

SIZES = [2, 5]


def directions(rank=None):
    """``.grad`` after a step, by method and loss; of one process's rows, or of the whole batch."""
    found = {}
    kinds = dict.fromkeys(kind for kind, _ in CASES)
    for kind, loss in [*CASES, *((kind, "ignored by one process") for kind in kinds)]:
        batch = batch_for(loss if loss in LOSSES else "cross-entropy", size=sum(SIZES))
        if loss not in LOSSES:
            batch = batch[0], batch[1].index_fill(0, torch.arange(SIZES[0]), -100)
        model = net()
        if rank is not None:
            batch = tuple(t.split(SIZES)[rank] for t in batch)
        used = model if rank is None else DistributedDataParallel(model, find_unused_parameters=True)
        step = kind(STRENGTH).backward(used, LOSSES.get(loss, LOSSES["cross-entropy"]), batch)
        found[kind.name, loss] = (grads(model), step.loss, step.gradient_norm)
    return found


def test_two_processes_have_the_direction_of_one(tmp_path):
    environment = {**os.environ, "STORE": str(tmp_path / "store")}
    running = [
        subprocess.Popen([sys.executable, __file__, str(tmp_path)], env={**environment, "RANK": str(rank)})
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for case, (direction, loss, norm) in directions().items():
        assert torch.equal(first[case][0], second[case][0]), "the same bits in both"
        assert relative_error(first[case][0], direction) < 1e-9, case
        assert first[case][1].item() == pytest.approx(loss.item(), rel=1e-9)
        assert first[case][2].item() == pytest.approx(norm.item(), rel=1e-9)


if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    store = distributed.FileStore(os.environ["STORE"], 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.set_num_threads(1)
    torch.save(directions(rank), folder / f"{rank}.pt")
    distributed.destroy_process_group()  # gloo's threads abort a process that ends without it
