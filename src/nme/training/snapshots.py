"""Snapshots: the networks that a training job saves for measurement."""

import io
import shutil
from pathlib import Path

import torch
from torch import nn

from nme.errors import NmeError
from nme.outputs.files import atomic, clear_partial
from nme.registry import number


class Snapshots:
    """The networks that a job saves for measurement, in a folder that appears when the job has succeeded.

    Until then they are in ``<folder>.partial``, from which a resumed job continues.

    Args:
        folder: final folder, one file per network.
        at: times of snapshots, as fractions of the training.
        steps: steps of the whole training.
        fresh: True if the job starts from the beginning; snapshots of an earlier attempt are then deleted.
    """

    def __init__(self, folder: Path, at: list[float], steps: int, fresh: bool):
        self.folder = folder
        self.partial = folder.with_name(f"{folder.name}.partial")
        self.at = at
        self.steps = steps
        if fresh:
            shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True, exist_ok=True)
        clear_partial(self.partial)

    def take(self, seed: int, step: int, model: nn.Module) -> None:
        """Save the network if a snapshot is due after ``step`` steps and all its parameters are finite."""
        for at in self.at:
            if round(at * self.steps) == step and all(p.isfinite().all() for p in model.parameters()):
                content = io.BytesIO()
                torch.save({"step": step, "model": model.state_dict()}, content)
                with atomic(_snapshot(self.partial, seed, at)) as temporary:
                    temporary.write_bytes(content.getbuffer())

    def finish(self) -> None:
        """Rename the partial folder to its final name."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.partial.replace(self.folder)


def read_snapshot(folder: Path, seed: int, at: float) -> dict | None:
    """Read ``step`` and ``model`` (a state dict) of a snapshot; None if the member had diverged by then.

    Raises:
        NmeError: there is no such folder, or the file is damaged.
    """
    if not folder.is_dir():
        raise NmeError(f"{folder}: missing. Train first.")
    path = _snapshot(folder, seed, at)
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch.load of a damaged file may raise anything
        raise NmeError(f"{path}: damaged. Delete {folder} and train again.") from None


def _snapshot(folder: Path, seed: int, at: float) -> Path:
    return folder / f"seed={seed}-at={number(at)}.pt"
