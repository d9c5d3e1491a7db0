"""The step of each training method beside that of plain SGD: time, counted operations, peak memory.

    python benchmarks/steps.py [--repeats N] [--eager] [NETWORK ...]

A step is all of ``train.Member.advance``: batch, update, optimizer, sums. One thread. The methods take turns in one
process, on one network; a ratio is of two times of the same turn, and the median over the turns is given. Peak memory
is that of two steps, in a process of their own, beyond that of the process before them.

Rows "straightforward" are the same update as one writes it in PyTorch with ``backward()`` and its own layers, without
recording anything. Compiled steps are those of recipes with ``compile``; what compiling takes is not in them, and their
memory is not measured, since the compiler's would be in it. With names of networks, or ``--eager``, it prints and
writes nothing.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

from children import added_peak_mib, in_a_process
from page import PAGE, ROOT, markdown_table, milliseconds, processor, replace_section

RECIPES = {
    "MLP": {"dataset": "fashion_mnist", "model": {"name": "mlp", "widths": [256, 256]}, "batch_size": 128},
    "CNN, 1-d": {
        "dataset": "mnist1d",
        "model": {"name": "cnn", "channels": [32, 32, 32], "kernel": 5, "stride": 2},
        "batch_size": 100,
        "weight_decay": 5e-4,
    },
    "CNN, 2-d": {
        "dataset": "digits",
        "model": {"name": "cnn", "channels": [16, 32], "kernel": 3, "stride": 2},
        "batch_size": 50,
        "weight_decay": 5e-4,
        "channels_last": True,
    },
    "WideResNet-16-2": {
        "dataset": "cifar10",
        "model": {"name": "wide_resnet", "depth": 16, "widen": 2},
        "batch_size": 32,
    },
    "ResNet-50": {"dataset": "cifar10", "model": {"name": "resnet50"}, "batch_size": 16},
}
NETWORKS = ("MLP", "CNN, 1-d", "CNN, 2-d", "WideResNet-16-2", "ResNet-50")
SHAPES = {"ResNet-50": (3, 64, 64)}  # where it is not the dataset's
ACTIVATION = "gelu"
# Time does not depend on them, as long as all numbers stay ordinary ones.
STRENGTH, LEARNING_RATE = 1e-4, 1e-4
VARIANTS = {"eager": {}, "compiled": {"compile": True}}  # what each adds to a recipe
# Methods that are compiled, where not all are: a step of these networks takes minutes to compile.
COMPILED = {"WideResNet-16-2": ("sgd", "grad_norm"), "ResNet-50": ()}
REPEATS = 15
STEPS_PER_EPOCH = 50
TURN_SECONDS = 0.1  # a method's turn is as many steps as fit, at least one

Step = Callable[[], object]


class Case(NamedTuple):
    """One bar: a training method, who computes it, and how it runs."""

    method: str
    by: str
    variant: str


SGD = Case("sgd", "nme", "eager")


def member_of(network: str, variant: str = "eager"):
    """A network in training on random inputs of the right shape."""
    import torch

    from nme.config.messages import check
    from nme.config.scale import Recipe
    from nme.data.in_memory import Data
    from nme.datasets import DATASETS
    from nme.methods import METHODS
    from nme.training.member import Job, Member

    settings = RECIPES[network]
    shape = SHAPES.get(network, DATASETS[settings["dataset"]].shape)
    settings = {**settings, "epochs": 1000, "learning_rate": LEARNING_RATE, **VARIANTS[variant]}
    recipe = check(Recipe, settings, network)
    torch.manual_seed(0)
    examples = STEPS_PER_EPOCH * recipe.batch_size
    column = (shape[0], *(1 for _ in shape[1:]))
    inputs, labels = torch.randn(examples, *shape), torch.randint(10, (examples,))
    data = Data(inputs, labels, torch.zeros(column), torch.ones(column))
    cpu = torch.device("cpu")
    return Member(Job(recipe, ACTIVATION, METHODS.parse("sgd"), 0.0, data, data, 10, cpu), seed=0)


def step_of(member, method: str) -> Step:
    """A training step of nme."""
    from nme.methods import METHODS

    job = replace(member.job, method=METHODS.parse(method), strength=STRENGTH)

    def step():
        member.job = job
        if member.step == STEPS_PER_EPOCH - 1:  # its last step would evaluate, too
            member.step, member._examples = 0, None
        member.advance()

    return step


def with_stock_layers(model):
    """The model with PyTorch's own layers."""
    from torch import nn

    for layer in model.modules():
        stock = [kind for kind in type(layer).__mro__ if kind in (nn.Conv1d, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d)]
        if stock:
            layer.__class__ = stock[0]
    return model


def straightforward_steps(member) -> dict[str, Step]:
    """The same updates as plain PyTorch loops, on a network of their own."""
    import torch
    from torch.nn.functional import cross_entropy

    recipe, data, model = member.job.recipe, member.job.train, with_stock_layers(member.model)
    parameters = list(model.parameters())
    options = {"momentum": recipe.momentum, "weight_decay": recipe.weight_decay, "foreach": True}
    optimizer = torch.optim.SGD(parameters, lr=recipe.learning_rate, **options)
    batches = itertools.cycle(torch.randperm(len(data.labels)).split(recipe.batch_size))

    def batch():
        chosen = next(batches)
        return (data.inputs[chosen] - data.mean) / data.std, data.labels[chosen]

    def sgd():
        x, y = batch()
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()

    def sam():
        x, y = batch()
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        before = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            scale = STRENGTH / (torch.stack([p.grad.norm() for p in parameters]).norm() + 1e-12)
            for p in parameters:
                p.add_(p.grad * scale)
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for p, b in zip(parameters, before, strict=True):
                p.copy_(b)
        optimizer.step()

    def gradient_penalty():
        x, y = batch()
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        gradient = torch.autograd.grad(loss, parameters, create_graph=True)
        (loss + STRENGTH * torch.stack([g.norm() for g in gradient]).norm()).backward()
        optimizer.step()

    return {"sgd": sgd, "sam": sam, "grad_norm": gradient_penalty}


def cases(network: str, variants: Iterable[str]) -> list[Case]:
    """All bars of a network, SGD first."""
    from nme.methods import METHODS

    methods = {"eager": METHODS, "compiled": COMPILED.get(network, METHODS)}
    ours = [Case(method, "nme", variant) for variant in variants for method in methods[variant]]
    return [*ours, *(Case(method, "straightforward", "eager") for method in ("sgd", "sam", "grad_norm"))]


def steps_of(network: str, wanted: list[Case]) -> dict[Case, Step]:
    """What runs for each case; those of one kind share a network."""
    found = {}
    for kind in dict.fromkeys((case.by, case.variant) for case in wanted):
        member = member_of(network, kind[1])
        plain = straightforward_steps(member) if kind[0] == "straightforward" else {}
        for case in wanted:
            if (case.by, case.variant) == kind:
                found[case] = plain.get(case.method) or step_of(member, case.method)
    return found


def timed(steps: dict[Case, Step], repeats: int) -> dict[Case, list[float]]:
    """Seconds of a step, turn by turn."""
    counts = {}
    for case, step in steps.items():
        step()  # the first step allocates
        counts[case] = max(1, round(TURN_SECONDS / _seconds(step, 1)))
    found = {case: [] for case in steps}
    for _ in range(repeats):
        for case, step in steps.items():
            found[case].append(_seconds(step, counts[case]))
    return found


def _seconds(step: Step, count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - began) / count


def compiles(case: Case, step: Step) -> bool:
    """Whether the step can be compiled, which happens now; a compiler's failure is told, and costs one bar only."""
    try:
        step()
    except Exception as error:
        print(f"{case}: {error}", file=sys.stderr)
        return False
    return True


def measured(network: str, repeats: int, variants: list[str]) -> list[dict]:
    """A row a case, without memory; in this process."""
    from operations import counted, forward_operations, limits

    from nme.runtime.device import prepare_device

    prepare_device("cpu", 1)
    steps = steps_of(network, cases(network, variants))
    steps = {case: step for case, step in steps.items() if case.variant == "eager" or compiles(case, step)}
    seconds = timed(steps, repeats)
    # A compiled step multiplies what the eager one does, where no counter sees it.
    operations = {case: counted(step) for case, step in steps.items() if case.variant == "eager"}
    member = member_of(network)
    best = limits(*forward_operations(member.model, member.job.train.inputs[: member.job.recipe.batch_size]))
    rows = []
    for case in steps:
        ratios = [one / sgd for one, sgd in zip(seconds[case], seconds[SGD], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        row = {"network": network, "batch_size": member.job.recipe.batch_size, **case._asdict()}
        row |= {"seconds": statistics.median(seconds[case]), "turns": repeats}
        row |= {"over_sgd": statistics.median(ratios), "over_sgd_quartile_low": low, "over_sgd_quartile_high": high}
        eager = operations[case._replace(variant="eager")]
        row |= {"operations": eager, "operations_over_sgd": eager / best["sgd"]}
        rows.append({**row, "limit_over_sgd": best[case.method] / best["sgd"]})
    return rows


def peak_mib(network: str, case: Case) -> float:
    """Peak memory of two steps beyond that of before, in this process."""
    from nme.runtime.device import prepare_device

    prepare_device("cpu", 1)
    return added_peak_mib(steps_of(network, [case])[case])


def versions() -> dict:
    """What the numbers depend on beside the code."""
    import torch

    cpu = f"{processor()} ({torch.backends.cpu.get_cpu_capability()})".strip()
    return {"torch": str(torch.__version__), "threads": 1, "cpu": cpu}


def page_of(rows: list[dict]) -> str:
    """The page's tables: time with counted operations and limit, and memory; a column a network."""
    from nme.methods import METHODS

    networks = list(dict.fromkeys(row["network"] for row in rows))
    lines = list(dict.fromkeys(Case(row["method"], row["by"], row["variant"]) for row in rows))
    found = {(row["network"], row["method"], row["by"], row["variant"]): row for row in rows}

    def label(case: Case) -> str:
        more = [text for text in (case.by, case.variant) if text not in ("nme", "eager")]
        return METHODS.parse(case.method).label + (f" ({', '.join(more)})" if more else "")

    def ratio(row: dict) -> str:
        return f"**{row['over_sgd']:.2f}** · {row['operations_over_sgd']:.2f} · {row['limit_over_sgd']:.2f}"

    def block(cell: Callable[[dict], str], shown: list[Case] = lines) -> str:
        body = [
            [label(case), *(cell(found[(n, *case)]) if (n, *case) in found else "–" for n in networks)]
            for case in shown
        ]
        return markdown_table(["", *networks], body)

    sgd = [milliseconds(found[(n, *SGD)]["seconds"]) for n in networks]
    return "\n\n".join(
        [
            "Time over SGD · counted operations over SGD's · their limit:",
            block(ratio),
            f"A step of SGD: {', '.join(f'{n} {s}' for n, s in zip(networks, sgd, strict=True))}.",
            "Peak memory of a step, MiB:",
            block(lambda row: f"{row['peak_mib']:.0f}", [case for case in lines if case.variant == "eager"]),
        ]
    )


def main() -> None:
    """Measure and write results/bench/steps.parquet, the figure and the tables of docs/benchmarks.md."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of {'; '.join(NETWORKS)}")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="turns of each method (at least 2)")
    parser.add_argument(
        "--eager", action="store_true", help="leave out compiled steps, which take minutes each to begin"
    )
    options = parser.parse_args()
    variants = ["eager"] if options.eager else list(VARIANTS)
    if unknown := set(options.networks) - set(NETWORKS):
        parser.error(f"unknown network {', '.join(unknown)} (known: {'; '.join(NETWORKS)})")
    began = time.monotonic()
    rows = []
    for network in options.networks or NETWORKS:
        for row in in_a_process(__file__, "--child", "time", network, str(options.repeats), *variants):
            eager, case = row["variant"] == "eager", (row["method"], row["by"], row["variant"])
            row["peak_mib"] = in_a_process(__file__, "--child", "memory", network, *case) if eager else None
            rows.append(row)
            ratios = "{over_sgd:6.2f} {operations_over_sgd:6.2f} {limit_over_sgd:6.2f}".format(**row)
            memory = f"{row['peak_mib']:6.0f} MiB" if eager else ""
            case = "{:26s} {:16s} {:8s}".format(*case)
            print(f"{network:16s} {case} {ratios} {row['seconds'] * 1e3:9.2f} ms {memory}", flush=True)
    if options.networks or options.eager:
        return

    import pyarrow as pa
    from steps_figure import draw

    from nme.outputs import parquet
    from nme.outputs.provenance import provenance

    settings = {"repeats": options.repeats, "activation": ACTIVATION, "strength": STRENGTH}
    record = provenance(settings, time.monotonic() - began, **versions())
    output = ROOT / "results" / "bench" / "steps.parquet"
    parquet.write(pa.Table.from_pylist(rows), output, record)
    draw(output, ROOT / "figures" / "bench.pdf", ROOT / "docs" / "images" / "bench.png")
    facts = "PyTorch {torch}, {threads} thread, {cpu}".format(**record)
    replace_section("steps", f"{facts}, median of {options.repeats} turns.\n\n{page_of(rows)}")
    print(f"{output.relative_to(ROOT)}, figures/bench.pdf and {PAGE.relative_to(ROOT)} are written")


if __name__ == "__main__":
    if sys.argv[1:3] == ["--child", "time"]:
        print(json.dumps(measured(sys.argv[3], int(sys.argv[4]), sys.argv[5:])))
    elif sys.argv[1:3] == ["--child", "memory"]:
        print(json.dumps(peak_mib(sys.argv[3], Case(*sys.argv[4:]))))
    else:
        main()
