"""Resume checkpoints: a job that was stopped continues where it was and ends with the same result.

A resume checkpoint is an undeclared file beside the job's output (Snakemake deletes declared outputs of a failed job).
It is written atomically, holds the identity of the job it belongs to, and is removed when the job has succeeded.
"""

import io
import signal
import time
from pathlib import Path
from types import FrameType

import torch

from nme.outputs.files import atomic, clear_partial


class Checkpoint:
    """The resume checkpoint of one job, whose folder is its own: what a killed process half wrote there is deleted.

    Args:
        path: where it is kept.
        identity: what must match for it to be used: the settings' hash, the data, the device, the version of PyTorch.
        every_seconds: how often it is written at most, besides when the job is asked to stop.
        reader: of several processes of a job, one that only reads it.
    """

    def __init__(self, path: Path, identity: dict[str, str], every_seconds: float, reader: bool = False):
        self.path = path
        self.identity = identity
        self.every_seconds = every_seconds
        if not reader:
            clear_partial(path.parent)
        self._saved = time.monotonic()

    def load(self) -> tuple[dict | None, str]:
        """The saved state, or None to start from the beginning; and a sentence about it for the log ('' if no file)."""
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
                f"{self.path}: the resume checkpoint has another {', '.join(different)}; starting over",
            )
        return state, f"{self.path}: continuing from the resume checkpoint"

    def due(self) -> bool:
        """Whether it is time to save again."""
        return time.monotonic() - self._saved >= self.every_seconds

    def save(self, state: dict) -> None:
        """Write the state, replacing an earlier one."""
        content = io.BytesIO()  # torch.save to a full disk raises what nobody understands; a plain write does not
        torch.save({"identity": self.identity, "state": state}, content)
        with atomic(self.path) as temporary:
            temporary.write_bytes(content.getbuffer())
        self._saved = time.monotonic()

    def remove(self) -> None:
        """Forget it: the job has succeeded."""
        self.path.unlink(missing_ok=True)


class StopRequest:
    """Turns SIGTERM (preemption, a time limit, ``scancel``), SIGUSR1 (a cluster's warning) and SIGINT into a request.

    The job answers it at its next step, its state being saved.
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
