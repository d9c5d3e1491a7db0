"""Fast: the step of every method over that of SGD on the paper's networks, and what part of the card's peak it reaches.

As a program (``python -m gpu_check.fast DEVICE NETWORK QUICK``) it times compiled steps in a process of its own, which
can be ended when the time is over, and prints each as soon as it is known.
"""

import json
import statistics
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import torch
from operations import counted
from steps import with_stock_layers
from torch import nn

from gpu_check import laptop, timing
from gpu_check.groups import environment
from gpu_check.networks import Network, data_of, endless, member_of, network, recipe_of
from gpu_check.session import Session, products_in, release_memory
from nme.data.in_memory import Data
from nme.derivatives.single_pass import logits_of
from nme.methods import METHODS
from nme.training.member import Member

NETWORKS = ("WideResNet-28-10", "ResNet-50")
VARIANTS = {
    "bf16, channels last": {"precision": "bf16", "channels_last": True},
    "tf32, channels last": {"precision": "tf32", "channels_last": True},
    "fp32": {"precision": "fp32"},
    "tf32": {"precision": "tf32"},
    "bf16": {"precision": "bf16"},
}
COMPILED = ("sgd", "grad_norm", "sam")
PLAIN = "plain loop"
BARS = {"grad_norm": 3.3, "sam": 2.1}
PLAIN_BAR, PEAK_BAR = 1.05, 0.4
BATCHES = 6


def check(session: Session) -> None:
    """Eager steps of both networks, most telling variants first; then laptop networks and loaders; compiled steps."""
    peaks = timing.matmul_peaks(session)
    for precision, peak in peaks.items():
        session.add("fast", "matrix product", precision, "TFLOP/s", peak / 1e12)
    shapes = {name: network(name, session.quick) for name in NETWORKS}
    data = {name: data_of(net, BATCHES, session.device) for name, net in shapes.items()}
    counts: dict[tuple[str, str], int] = {}
    slowest = 1.0 if session.quick else 20.0
    for label in list(VARIANTS)[: 1 if session.quick else None]:
        for name, net in shapes.items():
            release_memory(session.device)
            if session.has_time("fast", f"{name}, {label}", slowest):
                before = session.left()
                with session.guard("fast", f"{name}, {label}"):
                    _variant(session, name, net, label, data[name], counts, peaks)
                slowest = max(slowest, before - session.left())
    data.clear()
    release_memory(session.device)
    _peak_bar(session)
    laptop.check(session)
    for name in NETWORKS[: 1 if session.quick else None]:
        _compiled(session, name)


def plain_loop(member: Member) -> timing.Step:
    """SGD as one writes it in PyTorch, with its own layers, in the precision of the recipe; it records nothing."""
    job, data = member.job, member.job.train
    model = with_stock_layers(deepcopy(member.model)).train()
    options = {"momentum": job.recipe.momentum, "weight_decay": job.recipe.weight_decay, "foreach": True}
    optimizer = torch.optim.SGD(model.parameters(), lr=job.recipe.learning_rate, **options)
    order = torch.randperm(len(data.labels), device=data.labels.device).split(job.recipe.batch_size)
    at = 0

    def step() -> None:
        nonlocal at
        chosen, at = order[at], (at + 1) % len(order)
        inputs = job.prepare_inputs((data.inputs[chosen] - data.mean) / data.std)
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits_of(model, inputs), data.labels[chosen]).backward()
        optimizer.step()

    return step


def _variant(
    session: Session, name: str, net: Network, label: str, data: Data, counts: dict, peaks: dict[str, float]
) -> None:
    settings = VARIANTS[label]
    member = member_of(recipe_of(net, **settings), data, net.classes)
    steps = {method: endless(member, method) for method in METHODS} | {PLAIN: plain_loop(member)}
    with products_in(settings["precision"]):
        for method, step in list(steps.items()):
            try:
                step()
                if (name, method) not in counts:
                    counts[name, method] = counted(step)
            except torch.OutOfMemoryError:
                session.skip("fast", f"{name}, {label}, {method}", "out of memory")
                del steps[method]
                torch.cuda.empty_cache()
        if "sgd" not in steps:
            return
        times = timing.timed(steps, session)
        for method, step in steps.items():
            _report(session, name, label, method, step, times, counts[name, method], peaks[settings["precision"]])
            if method != PLAIN:
                places = timing.waits(step, session.device)
                if places is not None:
                    note = ", ".join(dict.fromkeys(places))
                    session.add("fast", f"{name}, {label}", method, "waits in a step", len(places), 0, not places, note)


def _report(
    session: Session, name: str, label: str, method: str, step: timing.Step, times: dict, operations: int, peak: float
) -> None:
    """Add the numbers of one step; where a bar is missed, save the profile that shows why."""
    where, seconds = ("fast", f"{name}, {label}", method), statistics.median(times[method])
    net = network(name, session.quick)
    facts = {"network_name": name, "model": net.model, "input_shape": list(net.shape), "batch_size": net.batch}
    facts |= {"channels_last": False, **VARIANTS[label]}
    session.add(*where, "seconds", seconds, **facts)
    session.add(*where, "counted operations", operations)
    session.add(*where, "part of the matmul peak", operations / seconds / peak)
    memory = timing.peak_memory(step, session.device)
    if memory is not None:
        session.add(*where, "peak MiB", memory)
    over, bar = timing.ratio(times[method], times["sgd"]), BARS.get(method)
    if method == PLAIN:
        method, over, bar = "sgd over the plain loop", timing.ratio(times["sgd"], times[PLAIN]), PLAIN_BAR
    ok = over <= bar if bar and session.cuda else None
    note = ""
    if ok is False or (session.quick and method == "grad_norm"):
        note = timing.save_profile(step, session, f"{name}-{label}-{method}".replace(", ", "-").replace(" ", "-"))
    session.add("fast", f"{name}, {label}", method, "time over SGD", over, bar, ok, note)


def _peak_bar(session: Session) -> None:
    found = [
        row["value"]
        for row in session.rows
        if row["network"].startswith("ResNet-50, bf16")
        and (row["case"], row["quantity"]) == ("sgd", "part of the matmul peak")
    ]
    if found:
        ok = max(found) >= PEAK_BAR if session.cuda else None
        session.add("fast", "ResNet-50, bf16", "sgd", "best part of the matmul peak", max(found), PEAK_BAR, ok)


def _compiled(session: Session, name: str) -> None:
    """Compiled steps, in a process that is ended when the time is over."""
    if not session.has_time("fast", f"{name}, compiled", 2 if session.quick else 60):
        return
    command = [sys.executable, "-m", "gpu_check.fast", session.device.type, name, str(int(session.quick))]
    # A rehearsal compiles nothing: a compiler takes longer than all else.
    own = environment(session.device) | ({"TORCH_COMPILE_DISABLE": "1"} if session.quick else {})
    log = session.folder / f"compiled-{name}.txt"
    with log.open("w", encoding="utf-8") as output, (session.folder / f"compiled-{name}.log").open("w") as errors:
        process = subprocess.Popen(command, env=own, stdout=output, stderr=errors)
        try:
            code, note = process.wait(timeout=max(1, session.left() - 5)), ""
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code, note = 0, "out of time"
    lines = log.read_text(encoding="utf-8").splitlines()
    for line in lines:
        found = json.loads(line)
        session.add("fast", f"{name}, {found['variant']}", found["method"], "time over eager SGD", found["over"])
        session.add("fast", f"{name}, {found['variant']}", found["method"], "seconds", found["seconds"])
    if code or note:
        session.skip("fast", f"{name}, compiled", note or f"failed: see {log.stem}.log")


def main(kind: str, name: str, quick: bool) -> None:
    """Time compiled steps beside eager SGD, in bf16 and channels last."""
    from nme.runtime.device import prepare_device

    device = prepare_device(kind, 1)
    session = Session(device, quick, Path(), 600)
    net, label = network(name, quick), "bf16, channels last"
    data = data_of(net, BATCHES, device)
    eager = endless(member_of(recipe_of(net, **VARIANTS[label]), data, net.classes), "sgd")
    member = member_of(recipe_of(net, **VARIANTS[label], compile=True), data, net.classes)
    for method in COMPILED:
        times = timing.timed({"eager": eager, method: endless(member, method)}, session)
        found = {"variant": f"{label}, compiled", "method": method, "over": timing.ratio(times[method], times["eager"])}
        print(json.dumps({**found, "seconds": statistics.median(times[method])}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3] == "1")
