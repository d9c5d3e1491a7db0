"""Reproducible: the same cell twice gives the same bits, and so does one that is killed halfway and continues.

As a program (``python -m gpu_check.reproducible DEVICE FOLDER QUICK KIND HOW``) it trains the cells in a process of its
own and prints the checksums of what they end with. KIND is ``eager`` or ``compiled``, HOW is ``twice``, ``killed`` or
``resumed``.
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

from gpu_check.groups import OUT_OF_TIME, environment
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
KINDS = {"eager": 20, "compiled": 60}  # seconds of a process, about


def cells(quick: bool, kind: str) -> list[Cell]:
    """Cells of a kind; a rehearsal has neither ResNet-50 nor compiled ones."""
    found = [cell for cell in CELLS if ("compile" in cell.settings) == (kind == "compiled")]
    if not quick:
        return found
    return [] if kind == "compiled" else [cell for cell in found if not cell.network.startswith("ResNet")]


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
    """Start the processes of both kinds of cells, and compare what they print."""
    for kind in KINDS:
        if cells(session.quick, kind):
            _kind(session, kind)


def _kind(session: Session, kind: str) -> None:
    folder = session.folder / "reproducible"
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for how in ("twice", "killed", "resumed"):
        if not session.has_time("reproducible", f"{kind}, {how}", 2 if session.quick else KINDS[kind]):
            return
        found[how], problem = _run(session, folder, kind, how)
        if problem == OUT_OF_TIME:
            return session.skip("reproducible", f"{kind}, {how}", problem)
        if problem:
            return session.add("reproducible", f"{kind}, {how}", "process", "failed", None, None, False, problem)
    for cell in cells(session.quick, kind):
        first, second = found["twice"][cell.name]
        session.add("reproducible", cell.name, "twice", "same bits", float(first == second), 1, first == second)
        same = found["resumed"][cell.name] == [first]
        session.add("reproducible", cell.name, "killed and resumed", "same bits", float(same), 1, same)


def _run(session: Session, folder: Path, kind: str, how: str) -> tuple[dict, str]:
    command = [sys.executable, "-m", "gpu_check.reproducible", session.device.type, str(folder)]
    command += [str(int(session.quick)), kind, how]
    try:
        done = subprocess.run(
            command, env=environment(session.device), capture_output=True, text=True, timeout=max(5, session.left())
        )
    except subprocess.TimeoutExpired:
        return {}, OUT_OF_TIME
    if how == "killed":
        return {}, "" if done.returncode == -signal.SIGKILL else f"was not killed: {done.stderr[-300:]}"
    if done.returncode:
        return {}, (done.stderr.strip().splitlines() or ["no message"])[-1]
    return json.loads(done.stdout.splitlines()[-1]), ""


def main(name: str, folder: Path, quick: bool, kind: str, how: str) -> None:
    """Train all cells in this process; print checksums by cell, or be killed."""
    from nme.runtime.device import prepare_device

    device = prepare_device(name, 1)
    times = 2 if how == "twice" else 1
    sums = {cell.name: [train(cell, device, folder, quick, how) for _ in range(times)] for cell in cells(quick, kind)}
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    print(json.dumps(sums))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "1", *sys.argv[4:])
