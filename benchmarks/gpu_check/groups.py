"""Processes that share a training on GPUs (NCCL): one process, and all GPUs, train the network of an ordinary run.

As a program (``python -m gpu_check.groups DEVICE FILE QUICK``) it is one of these processes.
"""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch

from gpu_check.networks import NETWORKS, TINY_WRN, Network, data_of, member_of, recipe_of
from gpu_check.session import Session
from nme.runtime import processes

METHODS_TRIED = ("grad_norm", "gauss_newton_trace")
STEPS = 3
WORST = 1e-4
PARTS = 4  # parts of a batch
OUT_OF_TIME, FAILED = "out of time", "failed"
LONGEST = 60  # seconds; processes that find each other at all need less


def trained(device: torch.device, quick: bool) -> torch.Tensor:
    """Parameters after a few steps of each method, flat, on the CPU; a batch is shared out to the processes."""
    net: Network = TINY_WRN if quick else NETWORKS["WideResNet-16-4"]._replace(batch=64)
    data, found = data_of(net, STEPS + 1, device), []
    for method in METHODS_TRIED:
        part = net.batch // PARTS
        recipe = recipe_of(net, micro_batch=part, processes=processes.world(), augment="crop_flip", learning_rate=0.05)
        member = member_of(recipe, data, net.classes, method)
        for _ in range(STEPS):
            member.advance()
        found += [p.detach().reshape(-1) for p in member.parameters]
    return torch.cat(found).cpu()


def check(session: Session) -> None:
    """Compare one process of a group, and as many as there are GPUs, with no group."""
    from gpu_check.right import relative_error

    worlds = [1, min(torch.cuda.device_count(), PARTS)] if session.cuda else [2]
    if not session.has_time("right", "processes", 5 if session.quick else 20 * len(worlds)):
        return
    expected = trained(session.device, session.quick)
    for world in dict.fromkeys(worlds):
        backend = "NCCL" if session.cuda else "gloo"
        found, problem = _run(session, world)
        if problem == OUT_OF_TIME:
            session.skip("right", f"{backend}, {world}", problem)
            continue
        error = None if found is None else relative_error(found, expected)
        ok = error is not None and error <= WORST
        where = "right", f"{backend}, {world} process{'es' if world > 1 else ''}", ", ".join(METHODS_TRIED)
        session.add(*where, "fp32: error", error, WORST, ok, problem)


def _run(session: Session, world: int) -> tuple[torch.Tensor | None, str]:
    """Parameters of the first process, or what went wrong."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    output = session.folder / f"group-{world}.pt"
    output.unlink(missing_ok=True)
    shared = environment() | {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    command = [sys.executable, "-m", "gpu_check.groups", session.device.type, str(output), str(int(session.quick))]
    logs = [session.folder / f"group-{world}-{rank}.log" for rank in range(world)]
    running = []
    for rank, log in enumerate(logs):
        own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        running.append(subprocess.Popen(command, env=own, stderr=log.open("w")))
    problem = _wait(running, min(LONGEST, session.left()))
    if problem == FAILED:
        failed = next(number for number, process in enumerate(running) if process.returncode > 0)
        problem = (logs[failed].read_text(encoding="utf-8").strip().splitlines() or ["no message"])[-1]
    return (torch.load(output) if not problem else None), problem


def _wait(running: list[subprocess.Popen], seconds: float) -> str:
    """Wait for all; one that fails, or the end of the time, ends the others. Returns what went wrong."""
    ends, problem = time.monotonic() + seconds, ""
    while not problem and any(process.poll() is None for process in running):
        if any(process.returncode for process in running):
            problem = FAILED
        elif time.monotonic() > ends:
            problem = OUT_OF_TIME if seconds < LONGEST else f"no answer within {LONGEST} s"
        time.sleep(0.1)
    for process in running:
        process.kill()
        process.wait()
    return problem or (FAILED if any(process.returncode for process in running) else "")


def environment(device: torch.device | None = None) -> dict[str, str]:
    """Environment of a child process, which finds this package and nme in this checkout, and the same GPU."""
    folders = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "src"), os.environ.get("PYTHONPATH", "")]
    own = {"LOCAL_RANK": str(device.index or 0)} if device and device.type == "cuda" else {}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders)), **own}


def main(kind: str, output: Path, quick: bool) -> None:
    """Train as one of the processes; the first one writes the parameters."""
    from nme.runtime.device import prepare_device

    device = prepare_device(kind, 1)
    processes.start_group(device)
    found = trained(device, quick)
    assert not processes.any_of(False)
    assert processes.any_of(processes.rank() == 0)
    if processes.rank() == 0:
        torch.save(found, output)
    processes.meet()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "1")
