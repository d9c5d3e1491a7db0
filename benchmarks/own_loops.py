"""A step in one's own loop: nme's SAM against the SAM wrappers, and the API against the bare update.

    python benchmarks/own_loops.py [--repeats N] [--davda54 PATH/TO/sam.py] [--write]

All take turns in one process, on copies of one network, one thread; a ratio is of two times of the same turn, and the
median over the turns is given with its quartiles. All step with ``torch.optim.SGD``. The wrappers freeze no running
statistics here, and record no norm, which is less work than ours. davda54/sam is in no registry: give the file of a
clone.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from copy import deepcopy

import torch
from page import markdown_table, milliseconds, processor, replace_section
from torch import nn

RHO, TURN_SECONDS = 0.05, 0.15
OPTIONS = {"lr": 1e-4, "momentum": 0.9}


def networks():
    """Name, network and batch."""
    from nme.activations import ACTIVATIONS
    from nme.models import MODELS

    gelu = ACTIVATIONS.parse("gelu")
    mlp = MODELS["mlp"](name="mlp", widths=[256, 256]).build((1, 28, 28), 10, gelu)
    cnn = MODELS["cnn"](name="cnn", channels=[16, 32], kernel=3, stride=2).build((1, 8, 8), 10, gelu)
    yield "MLP", mlp, (torch.randn(128, 1, 28, 28), torch.randint(10, (128,)))
    yield "CNN, 2-d", cnn, (torch.randn(50, 1, 8, 8), torch.randint(10, (50,)))
    wide = MODELS["wide_resnet"](name="wide_resnet", depth=16, widen=1).build((3, 32, 32), 10, gelu)
    yield "WideResNet-16-1", wide, (torch.randn(8, 3, 32, 32), torch.randint(10, (8,)))


def steps_of(model: nn.Module, batch: tuple, davda54: str | None) -> dict[str, Callable[[], object]]:
    """What runs in each turn."""
    import pytorch_optimizer

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


def main() -> None:
    """Measure, print, and with ``--write`` put the table into docs/benchmarks.md."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--davda54", help="sam.py of a clone of davda54/sam")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    columns, cells, base = [], {}, []
    for name, model, batch in networks():
        steps = steps_of(model, batch, options.davda54)
        counts, times = {}, {case: [] for case in steps}
        for case, step in steps.items():
            seconds(step, 2)
            counts[case] = max(1, round(TURN_SECONDS / seconds(step, 2)))
        for turn in range(options.repeats):
            order = list(steps) if turn % 2 else list(reversed(steps))
            for case in order:
                times[case].append(seconds(steps[case], counts[case]))
        columns.append(name)
        base.append(f"{name} {milliseconds(statistics.median(times['nme, bare update of SAM']))}")
        for case in steps:
            over = times[BASES.get(case, "nme, bare update of SAM")]
            ratios = [a / b for a, b in zip(times[case], over, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            cells.setdefault(case, []).append(f"**{middle:.3f}** ({low:.2f}–{high:.2f})")
    table = markdown_table(["", *columns], [[case, *row] for case, row in cells.items()])
    head = f"PyTorch {torch.__version__}, 1 thread, {processor()}, median of {options.repeats} turns (quartiles)."
    text = f"{head}\n\n{table}\n\nA bare update of SAM: {', '.join(base)}."
    print(text)
    if options.write:
        replace_section("own loops", text)


if __name__ == "__main__":
    main()
