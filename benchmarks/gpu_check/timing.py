"""Times of steps by turns, the matmul peak of a card, waits for the device, profiles."""

import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from gpu_check.session import Session, finish_queued_work, products_in

Step = Callable[[], object]
TURNS = 3
TURN_SECONDS = 0.15


def seconds_of(step: Step, count: int, device: torch.device) -> float:
    """Seconds per call of ``count`` calls in a row, to the end of the device's work."""
    finish_queued_work(device)
    began = time.perf_counter()
    for _ in range(count):
        step()
    finish_queued_work(device)
    return (time.perf_counter() - began) / count


def timed(steps: dict[str, Step], session: Session) -> dict[str, list[float]]:
    """Seconds of each step, turn by turn, so that a ratio is of two times of the same turn; two calls warm up."""
    turn = 0.01 if session.quick else TURN_SECONDS
    counts = {}
    for name, step in steps.items():
        step()
        counts[name] = max(1, round(turn / seconds_of(step, 1, session.device)))
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(2 if session.quick else TURNS):
        for name, step in steps.items():
            found[name].append(seconds_of(step, counts[name], session.device))
    return found


def ratio(times: list[float], of: list[float]) -> float:
    """Median over the turns of the ratio."""
    return statistics.median(one / other for one, other in zip(times, of, strict=True))


def peak_memory(step: Step, device: torch.device) -> float | None:
    """MiB that one call needs beyond what was allocated before; None on a CPU."""
    if device.type != "cuda":
        return None
    finish_queued_work(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def matmul_peaks(session: Session) -> dict[str, float]:
    """Operations per second of a large square matrix product, by precision: what the card's peak is taken to be."""
    size, found = 256 if session.quick else 8192, {}
    for precision in ("fp32", "tf32", "bf16"):
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        a, b = (torch.randn(size, size, device=session.device).to(dtype) for _ in range(2))
        with products_in(precision):
            for _ in range(3):
                a @ b
            seconds = min(seconds_of(lambda a=a, b=b: a @ b, 5, session.device) for _ in range(3))
        found[precision] = 2 * size**3 / seconds
    return found


def waits(step: Step, device: torch.device) -> list[str] | None:
    """Where a step waits for the device: PyTorch's warnings during one call; None on a CPU."""
    step()
    if device.type != "cuda":
        return None
    finish_queued_work(device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = [warning for warning in caught if "called a synchronizing" in str(warning.message)]
    return [f"{Path(warning.filename).name}:{warning.lineno}" for warning in found]


def save_profile(step: Step, session: Session, name: str) -> str:
    """Write which kernels take the time of three steps; returns the name of the file."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if session.cuda else [])]
    finish_queued_work(session.device)
    with profile(activities=activities) as found:
        for _ in range(3):
            step()
        finish_queued_work(session.device)
    by = "self_device_time_total" if session.cuda else "self_cpu_time_total"
    path = session.folder / f"profile-{name}.txt"
    path.write_text(found.key_averages().table(sort_by=by, row_limit=40, max_name_column_width=80), encoding="utf-8")
    return path.name
