"""One run of the check: its device, its time, and the numbers it has found."""

import gc
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

PRECISIONS = ("fp32", "tf32", "bf16")


class Session:
    """What the parts share.

    Args:
        device: device to check.
        quick: tiny sizes, to rehearse on a CPU.
        folder: folder of everything that is written.
        seconds: time of the whole run.
    """

    def __init__(self, device: torch.device, quick: bool, folder: Path, seconds: float):
        self.device, self.quick, self.folder = device, quick, folder
        self.ends = self.part_ends = time.monotonic() + seconds
        self.rows: list[dict] = []

    @property
    def cuda(self) -> bool:
        """True on a GPU."""
        return self.device.type == "cuda"

    def left(self) -> float:
        """Seconds left for the current part."""
        return self.part_ends - time.monotonic()

    def has_time(self, part: str, what: str, seconds: float) -> bool:
        """True if ``seconds`` are left; otherwise a row says what was left out."""
        if self.left() >= seconds:
            return True
        self.skip(part, what, f"out of time: {self.left():.0f} s left, about {seconds:.0f} s needed")
        return False

    def skip(self, part: str, what: str, reason: str) -> None:
        """Record what was not checked, and why."""
        self.add(part, what, "", "skipped", None, note=reason)

    def add(
        self,
        part: str,
        network: str,
        case: str,
        quantity: str,
        value: float | None,
        bar: float | None = None,
        ok: bool | None = None,
        note: str = "",
        **more: object,
    ) -> None:
        """Record a number: what was measured, its value, the bar, and whether it passes (None: no bar here)."""
        row = {"part": part, "network": network, "case": case, "quantity": quantity, "value": value, "bar": bar}
        self.rows.append({**row, "ok": ok, "note": note, **more})
        shown = "" if value is None else f" {value:.3g}"
        passed = {True: " ok", False: " FAILED" if part in ("right", "reproducible") else " MISSED", None: ""}[ok]
        print(f"{part}: {network} {case} {quantity}{shown}{passed} {note}".rstrip(), file=sys.stderr, flush=True)

    @contextmanager
    def guard(self, part: str, what: str) -> Iterator[None]:
        """Record an exception inside as a failure, so that the other checks go on; its traceback goes to stderr."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            lines = str(error).splitlines() or [""]
            self.add(part, what, "", "raised", None, None, False, f"{type(error).__name__}: {lines[0][:200]}")

    @property
    def failed(self) -> bool:
        """True if a check of correctness failed."""
        return any(row["ok"] is False for row in self.rows if row["part"] in ("right", "reproducible"))


@contextmanager
def products_in(precision: str) -> Iterator[None]:
    """Inside, float32 products on a GPU are exact (``fp32``, ``bf16``) or in TF32 (``tf32``), as ``nme train`` sets."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def release_memory(device: torch.device) -> None:
    """Give cached memory back to the GPU, for a child process."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def finish_queued_work(device: torch.device) -> None:
    """Wait for the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
