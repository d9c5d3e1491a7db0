"""A step in one's own loop: nme's SAM against the SAM wrappers, and the API against the bare update.

    python benchmarks/own_loops.py [--repeats N] [--davda54 PATH/TO/sam.py] [--write]

All take turns in one process, on copies of one network, one thread; a ratio is of two times of the same turn, and the
median over the turns is given with its quartiles. All step with ``torch.optim.SGD``. The wrappers freeze no running
statistics here, and record no norm, which is less work than ours. Peak memory is that of two steps, in a process of
their own, beyond that of the process before them. davda54/sam is in no registry: give the file of a clone.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from copy import deepcopy

from children import added_peak_mib, in_a_process
from page import markdown_table, milliseconds, processor, replace_section

RHO, TURN_SECONDS, PROCESSES = 0.05, 0.15, 3
OPTIONS = {"lr": 1e-4, "momentum": 0.9}


TIMED = ("MLP", "CNN, 2-d", "WideResNet-16-1")
LARGE = ("MLP", "WideResNet-16-4")  # for memory: where a step takes more than what PyTorch loads at its first one


def network_and_batch(name: str):
    """A network and its batch; sets one thread."""
    import torch

    from nme.activations import ACTIVATIONS
    from nme.models import MODELS

    torch.set_num_threads(1)
    torch.manual_seed(0)
    kind, settings, shape, size = {
        "MLP": ("mlp", {"widths": [256, 256]}, (1, 28, 28), 128),
        "CNN, 2-d": ("cnn", {"channels": [16, 32], "kernel": 3, "stride": 2}, (1, 8, 8), 50),
        "WideResNet-16-1": ("wide_resnet", {"depth": 16, "widen": 1}, (3, 32, 32), 8),
        "WideResNet-16-4": ("wide_resnet", {"depth": 16, "widen": 4}, (3, 32, 32), 16),
    }[name]
    model = MODELS[kind](name=kind, **settings).build(shape, 10, ACTIVATIONS.parse("gelu"))
    return model, (torch.randn(size, *shape), torch.randint(10, (size,)))


def steps_of(model, batch: tuple, davda54: str | None) -> dict[str, Callable[[], object]]:
    """What runs in each turn."""
    import pytorch_optimizer
    import torch
    from torch import nn

    from nme.derivatives.batch import Batch
    from nme.derivatives.losses import loss_of
    from nme.methods import GradientPenalty, Sam

    loss, (x, y) = nn.CrossEntropyLoss(), batch
    closed = loss_of(loss)

    def through_api(method):
        own = deepcopy(model)
        optimizer = torch.optim.SGD(own.parameters(), **OPTIONS)

        def step():
            optimizer.zero_grad()
            method.backward(own, loss, batch)
            optimizer.step()

        return step

    def bare(method):
        own = deepcopy(model)
        optimizer = torch.optim.SGD(own.parameters(), **OPTIONS)

        def step():
            optimizer.zero_grad()
            update = method.update(own, Batch(x, y, loss=closed), RHO, method.generator)
            for p, d in zip(own.parameters(), update.direction, strict=True):
                p.grad = d
            optimizer.step()

        return step

    def wrapped(kind):
        own = deepcopy(model)
        optimizer = kind(own.parameters(), torch.optim.SGD, rho=RHO, **OPTIONS)

        def step():
            optimizer.zero_grad()
            loss(own(x), y).backward()
            optimizer.first_step(zero_grad=True)
            loss(own(x), y).backward()
            optimizer.second_step(zero_grad=True)

        return step

    found = {"nme, Sam.backward": through_api(Sam(RHO)), "nme, bare update of SAM": bare(Sam(RHO))}
    found["pytorch_optimizer, SAM"] = wrapped(pytorch_optimizer.SAM)
    if davda54:
        spec = importlib.util.spec_from_file_location("davda54_sam", davda54)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found["davda54/sam"] = wrapped(module.SAM)
    found["nme, GradientPenalty.backward"] = through_api(GradientPenalty(RHO))
    found["nme, bare update of the gradient penalty"] = bare(GradientPenalty(RHO))
    return found


BASES = {"nme, GradientPenalty.backward": "nme, bare update of the gradient penalty"}
BASES["nme, bare update of the gradient penalty"] = "nme, bare update of the gradient penalty"


def seconds(step: Callable, count: int) -> float:
    """A step's mean time on the processor, which other processes do not disturb as much as that on the clock."""
    began = time.process_time()
    for _ in range(count):
        step()
    return (time.process_time() - began) / count


def measured(name: str, repeats: int, davda54: str | None) -> dict[str, list[float]]:
    """Seconds of a step for each case, turn by turn."""
    steps = steps_of(*network_and_batch(name), davda54)
    counts, times = {}, {case: [] for case in steps}
    for case, step in steps.items():
        seconds(step, 2)
        counts[case] = max(1, round(TURN_SECONDS / seconds(step, 2)))
    for turn in range(repeats):
        order = list(steps) if turn % 2 else list(reversed(steps))
        for case in order:
            times[case].append(seconds(steps[case], counts[case]))
    return times


def median_peak(*case: str) -> float:
    """Median of the peaks in several processes: where the system puts memory is a matter of chance."""
    return statistics.median(in_a_process(__file__, "--child", "memory", *case) for _ in range(PROCESSES))


def versions() -> str:
    """What the numbers depend on beside the code."""
    from importlib.metadata import version

    return f"PyTorch {version('torch')}, pytorch_optimizer {version('pytorch_optimizer')}, 1 thread, {processor()}"


def main() -> None:
    """Measure, print, and with ``--write`` put the tables into docs/benchmarks.md."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--davda54", help="sam.py of a clone of davda54/sam")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    clone, cells, base, memory = options.davda54 or "", {}, [], {}
    for name in TIMED:
        times = in_a_process(__file__, "--child", "time", name, clone, str(options.repeats))
        base.append(f"{name} {milliseconds(statistics.median(times['nme, bare update of SAM']))}")
        for case in times:
            over = times[BASES.get(case, "nme, bare update of SAM")]
            ratios = [a / b for a, b in zip(times[case], over, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            cells.setdefault(case, []).append(f"**{middle:.3f}** ({low:.2f}–{high:.2f})")
            print(f"{name:16s} {case:42s} {cells[case][-1]}", flush=True)
    for case in cells:
        memory[case] = [f"{median_peak(name, clone, case):.1f}" for name in LARGE]
    text = "\n\n".join(
        [
            f"{in_a_process(__file__, '--child', 'versions')}, median of {options.repeats} turns (quartiles).",
            markdown_table(["", *TIMED], [[case, *row] for case, row in cells.items()]),
            f"A bare update of SAM: {', '.join(base)}.",
            f"Peak memory of a step, MiB, median of {PROCESSES} processes:",
            markdown_table(["", *LARGE], [[case, *row] for case, row in memory.items()]),
        ]
    )
    print(text)
    if options.write:
        replace_section("own loops", text)


if __name__ == "__main__":
    if sys.argv[1:3] == ["--child", "versions"]:
        print(json.dumps(versions()))
    elif sys.argv[1:3] == ["--child", "time"]:
        print(json.dumps(measured(sys.argv[3], int(sys.argv[5]), sys.argv[4])))
    elif sys.argv[1:3] == ["--child", "memory"]:
        print(json.dumps(added_peak_mib(steps_of(*network_and_batch(sys.argv[3]), sys.argv[4])[sys.argv[5]])))
    else:
        main()
