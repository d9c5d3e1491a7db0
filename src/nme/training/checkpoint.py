"""Resume checkpoints: a stopped job continues from its last state and ends with the same result.

A resume checkpoint is an undeclared file next to the job's output (Snakemake deletes declared outputs of a failed job).
It is written atomically, holds the identity of its job, and is removed when the job has succeeded.
"""

import io
import signal
import time
from pathlib import Path
from types import FrameType

import torch

from nme.outputs.files import atomic, clear_partial


class Checkpoint:
    """The resume checkpoint of one job, in the job's own folder; partial files of killed processes are deleted there.

    Args:
        path: path of the checkpoint.
        identity: values that must match before the checkpoint is used: the settings' hash, the data, the device, the
            version of PyTorch.
        every_seconds: shortest interval between two saves, except when the job is asked to stop.
        reader: True in those of several processes that only read the checkpoint.
    """

    def __init__(self, path: Path, identity: dict[str, str], every_seconds: float, reader: bool = False):
        self.path = path
        self.identity = identity
        self.every_seconds = every_seconds
        if not reader:
            clear_partial(path.parent)
        self._saved = time.monotonic()

    def load(self) -> tuple[dict | None, str]:
        """Read the saved state (None: start from the beginning) and a sentence for the log ('' if there is no file)."""
        if not self.path.exists():
            return None, ""
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
            different = [key for key in self.identity if saved["identity"].get(key) != self.identity[key]]
            state = saved["state"]
        except Exception:  # torch.load of a damaged file may raise anything
            return None, f"{self.path}: the resume checkpoint is damaged; starting over"
        if different:
            return (
                None,
                f"{self.path}: the resume checkpoint was written with different {', '.join(different)}; starting over",
            )
        return state, f"{self.path}: continuing from the resume checkpoint"

    def due(self) -> bool:
        """True if it is time to save again."""
        return time.monotonic() - self._saved >= self.every_seconds

    def save(self, state: dict) -> None:
        """Write the state, in place of an earlier one."""
        content = io.BytesIO()  # on a full disk, torch.save raises an obscure error; a plain write raises a clear one
        torch.save({"identity": self.identity, "state": state}, content)
        with atomic(self.path) as temporary:
            temporary.write_bytes(content.getbuffer())
        self._saved = time.monotonic()

    def remove(self) -> None:
        """Delete the checkpoint: the job has succeeded."""
        self.path.unlink(missing_ok=True)


class StopRequest:
    """Turns SIGTERM (preemption, a time limit, ``scancel``), SIGUSR1 (a cluster's warning) and SIGINT into a request.

    The job saves its state and stops after the current step.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self.received: str | None = None

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for received, handler in self._before.items():
            signal.signal(received, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
