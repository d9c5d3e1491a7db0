"""Reproducible: the same cell twice gives the same bits, and so does one that is killed halfway and continues.

As a program (``python -m gpu_check.reproducible DEVICE FOLDER QUICK HOW``) it trains the cells in a process of its own
and prints the checksums of what they end with. HOW is ``twice``, ``killed`` or ``resumed``.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from gpu_check.groups import environment
from gpu_check.networks import data_of, member_of, network, recipe_of
from gpu_check.session import Session, products_in
from nme.training.checkpoint import Checkpoint
from nme.training.member import Member

BATCHES = 3  # of an epoch; a killed cell stops in the second epoch


class Cell(NamedTuple):
    """A training: network, method and settings of its recipe."""

    network: str
    method: str
    settings: dict

    @property
    def name(self) -> str:
        """Name in tables."""
        settings = [f"{key}={value}" for key, value in self.settings.items()]
        return ", ".join([self.network, self.method, *settings])


CELLS = [
    Cell("WideResNet-16-4", "grad_norm", {"precision": "bf16", "channels_last": True, "augment": "crop_flip"}),
    Cell("WideResNet-16-4", "gauss_newton_trace", {"precision": "tf32", "augment": "crop_flip"}),
    Cell("CNN, 1-d", "hessian_trace", {}),
    Cell("MLP", "weight_noise", {}),
    Cell("ResNet-50, 64 px", "sam", {"precision": "bf16", "channels_last": True}),
    Cell("MLP", "grad_norm", {"compile": True}),
]


def cells(session_quick: bool) -> list[Cell]:
    """All cells; a rehearsal has neither ResNet-50 nor a compiled one."""
    few = [cell for cell in CELLS if "compile" not in cell.settings and not cell.network.startswith("ResNet")]
    return few if session_quick else CELLS


def new_member(cell: Cell, device: torch.device, quick: bool) -> Member:
    """The member of a cell, at its start."""
    net = network(cell.network, quick)
    recipe = recipe_of(net, **{**cell.settings, "epochs": 2, "learning_rate": 0.05})
    return member_of(recipe, data_of(net, BATCHES, device), net.classes, cell.method)


def checksum(member: Member) -> str:
    """Checksum of the final network and of the recorded numbers, without the times."""
    found = hashlib.sha256()
    for tensor in [*member.model.state_dict().values(), *member.momentum]:
        found.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in member.rows]
    found.update(json.dumps(rows).encode())
    return found.hexdigest()


def train(cell: Cell, device: torch.device, folder: Path, quick: bool, how: str) -> str:
    """Train a cell, and return its checksum; if ``how`` is ``killed``, only to the middle, and save the state."""
    member = new_member(cell, device, quick)
    resume = folder / f"{hashlib.sha256(cell.name.encode()).hexdigest()[:12]}.resume.pt"
    checkpoint = Checkpoint(resume, {"cell": cell.name}, 0)
    if how == "resumed":
        state, _ = checkpoint.load()
        assert state is not None, "there is no checkpoint"
        member.restore(state)
    with products_in(member.job.recipe.precision):
        while not member.finished:
            member.advance()
            if how == "killed" and member.steps == BATCHES + 1:
                checkpoint.save(member.state())
                return ""
    return checksum(member)


def check(session: Session) -> None:
    """Start the processes, and compare what they print."""
    folder = session.folder / "reproducible"
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for how in ("twice", "killed", "resumed"):
        if not session.has_time("reproducible", how, 2 if session.quick else 20):
            return
        found[how], problem = _run(session, folder, how)
        if problem:
            session.add("reproducible", how, "process", "failed", None, None, False, problem)
            return
    for cell in cells(session.quick):
        first, second = found["twice"][cell.name]
        session.add("reproducible", cell.name, "twice", "same bits", float(first == second), 1, first == second)
        same = found["resumed"][cell.name] == [first]
        session.add("reproducible", cell.name, "killed and resumed", "same bits", float(same), 1, same)


def _run(session: Session, folder: Path, how: str) -> tuple[dict, str]:
    command = [sys.executable, "-m", "gpu_check.reproducible", session.device.type, str(folder)]
    command += [str(int(session.quick)), how]
    try:
        done = subprocess.run(
            command, env=environment(), capture_output=True, text=True, timeout=max(5, session.left())
        )
    except subprocess.TimeoutExpired:
        return {}, "out of time"
    if how == "killed":
        return {}, "" if done.returncode == -signal.SIGKILL else f"was not killed: {done.stderr[-300:]}"
    if done.returncode:
        return {}, (done.stderr.strip().splitlines() or ["no message"])[-1]
    return json.loads(done.stdout.splitlines()[-1]), ""


def main(kind: str, folder: Path, quick: bool, how: str) -> None:
    """Train all cells in this process; print checksums by cell, or be killed."""
    from nme.runtime.device import prepare_device

    device = prepare_device(kind, 1)
    times = 2 if how == "twice" else 1
    sums = {cell.name: [train(cell, device, folder, quick, how) for _ in range(times)] for cell in cells(quick)}
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    print(json.dumps(sums))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "1", sys.argv[4])
