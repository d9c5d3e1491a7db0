"""True: as many members of Figures 2 and 4 on CIFAR-10 as the time allows; a later call continues.

The data are a part of CIFAR-10 in one file (``gpu_check.pack``). Finished members are kept in ``true.json`` and the
state of the unfinished one in ``true.resume.pt``, both in the folder of the results.
"""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from gpu_check.networks import TINY_WRN, data_of, member_of, recipe_of
from gpu_check.pack import KEYS
from gpu_check.session import Session, products_in
from nme.data.in_memory import Data
from nme.outputs.files import atomic
from nme.training.checkpoint import Checkpoint

RECIPE = {
    "model": {"name": "wide_resnet", "depth": 16, "widen": 4},
    "augment": "crop_flip",
    "epochs": 30,
    "test_epochs": 30,
    "batch_size": 128,
    "precision": "bf16",
    "channels_last": True,
    "learning_rate": 0.1,
    "weight_decay": 5e-4,
}
ACTIVATIONS = ("gelu", "diminished_gelu", "relu", "augmented_relu")
SAME_AT_ZERO = ("gelu", "relu")  # without a penalty the others train the same network
STRENGTHS = (0.1, 0, 0.3, 0.03)
SEEDS = 5


class Cell(NamedTuple):
    """A member of Figure 2 or 4: gradient penalty with this activation, strength and seed."""

    activation: str
    strength: float
    seed: int


def members() -> list[Cell]:
    """All members, in the order in which they are trained: a whole seed before the next one."""
    return [
        Cell(activation, strength, seed)
        for seed in range(SEEDS)
        for strength in STRENGTHS
        for activation in (ACTIVATIONS if strength else SAME_AT_ZERO)
    ]


def read(path: Path, device: torch.device) -> tuple[Data, Data]:
    """Training and test split of a packed file, on the device."""
    with np.load(path) as file:
        images, labels, test_images, test_labels = (torch.from_numpy(file[key]) for key in KEYS)
    values = images.double() if len(images) < 1000 else images[:: len(images) // 1000].double()
    mean, std = (f(values.transpose(0, 1).flatten(1)).float().view(-1, 1, 1) for f in (_mean, _std))
    return tuple(
        Data(x.to(device), y.long().to(device), mean.to(device), std.to(device))
        for x, y in ((images, labels), (test_images, test_labels))
    )


def _mean(values: torch.Tensor) -> torch.Tensor:
    return values.mean(1)


def _std(values: torch.Tensor) -> torch.Tensor:
    return values.std(1)


def check(session: Session, file: Path | None) -> None:
    """Train members until the time is over, and add every finished one's test accuracy."""
    if file is None and not session.quick:
        reason = (
            "needs --data FILE, a part of CIFAR-10: python benchmarks/gpu.py --pack DATA_DIR FILE, where there is one"
        )
        return session.skip("true", "CIFAR-10", reason)
    recipe = dict(RECIPE)
    if session.quick:
        recipe |= {"model": TINY_WRN.model, "batch_size": TINY_WRN.batch, "epochs": 1, "test_epochs": 1}
    if file is None:  # a rehearsal on random images
        train = test = data_of(TINY_WRN, 4, session.device)
        source = "random images"
    else:
        (train, test), source = read(file, session.device), hashlib.sha256(file.read_bytes()).hexdigest()
    identity = {"recipe": json.dumps(recipe), "data": source, "version of PyTorch": str(torch.__version__)}
    kept = session.folder / "true.json"
    saved = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    done = saved["members"] if saved.get("identity") == identity else []
    checkpoint = Checkpoint(session.folder / "true.resume.pt", identity, 0)
    for cell in members()[: 2 if session.quick else None]:
        if any(Cell(*row["cell"]) == cell for row in done):
            continue
        row = _train(session, cell, recipe, train, test, checkpoint)
        if row is None:
            break
        done.append({"cell": list(cell), **row})
        with atomic(kept) as path:
            path.write_text(json.dumps({"identity": identity, "members": done}), encoding="utf-8")
        checkpoint.remove()
    for row in done:
        cell = Cell(*row["cell"])
        case = f"ρ = {cell.strength:g}, seed {cell.seed}"
        session.add("true", cell.activation, case, "test accuracy", row["test_accuracy"], seconds=row["seconds"])
    session.add("true", "CIFAR-10", "members", "finished", len(done), note=f"of {len(members())}")


def _train(session: Session, cell: Cell, recipe: dict, train: Data, test: Data, checkpoint: Checkpoint) -> dict | None:
    """Train one member, from its saved state if there is one; None: the time was over, and the state is saved."""
    net = TINY_WRN._replace(model=recipe["model"], batch=recipe["batch_size"])
    made = recipe_of(net, **recipe)
    member = member_of(made, train, net.classes, "grad_norm", cell.strength, cell.activation, test, cell.seed)
    state, _ = checkpoint.load()
    if state and state["cell"] == list(cell):
        member.restore(state["member"])
    with products_in(made.precision):
        while not member.finished:
            if session.left() < 5:
                checkpoint.save({"cell": list(cell), "member": member.state()})
                return None
            member.advance()
    seconds = sum(row["seconds"] for row in member.rows)
    return {"test_accuracy": member.rows[-1]["test_accuracy"], "seconds": seconds}
