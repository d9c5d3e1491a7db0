"""Traces and Lanczos of H, G and N against other packages: time and peak memory, in one run.

    make bench

Each case runs in a process of its own, a few times, the tools by turns; the median time and the peak memory beyond that
of the process before the work count. What a tool cannot do is left empty. Needs the extra ``bench``.
"""

import json
import math
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

MODELS = {
    "MLP 784-512-512-10, 256 examples": ("mlp", (784,), {"widths": [512, 512]}, 256),
    "CNN 32-64-64, 32×32, 128 examples": (
        "cnn",
        (3, 32, 32),
        {"channels": [32, 64, 64], "kernel": 3, "stride": 2},
        128,
    ),
    "WideResNet-16-2, 32×32, 16 examples": ("wide_resnet", (3, 32, 32), {"depth": 16, "widen": 2}, 16),
}
TOOLS = ("nme", "curvlinops", "hessian-eigenthings", "PyHessian")
# The work, with the number of probes or steps.
TASKS = {
    "tr H, tr G and tr N, 32 probes": ("traces", 32),
    "tr H, tr G and tr N, 1 probe": ("traces", 1),
    "tr H, 32 probes": ("trace", 32),
    "Lanczos on H, 20 steps": ("lanczos", 20),
    "Hv, 8 vectors": ("hessian", 8),
    "Hv, Gv and Nv, 8 vectors": ("joint", 8),
}
REPEATS = 3


class UnableError(Exception):
    """A tool has no such function."""


def work(tool: str, task: str, count: int, model, loss, x, y):
    """The task as a function without arguments."""
    import torch

    generator = torch.Generator().manual_seed(0)
    if tool == "nme":
        from nme import curvature as c

        def run():
            together = c.Curvature(model, loss, (x, y), check=False)  # as the others
            if task in ("traces", "trace"):
                return c.traces(together, count, generator)
            if task == "lanczos":
                return c.lanczos(c.Hessian(together), count, torch.randn(together.size, generator=generator))
            vectors = torch.randn(together.size, count, generator=generator)
            return together.hessian_product(vectors) if task == "hessian" else together.products(vectors)

        return run
    if tool == "curvlinops":
        from curvlinops import GGNLinearOperator, HessianLinearOperator, hutchinson_trace
        from scipy.sparse.linalg import eigsh

        parameters = [p for p in model.parameters() if p.requires_grad]
        data = [(x, y)]

        def operators(*kinds):
            return [kind(model, loss, parameters, data, check_deterministic=False) for kind in kinds]

        def run():
            if task == "traces":  # N has no operator: its trace is the difference
                return [hutchinson_trace(o, count) for o in operators(HessianLinearOperator, GGNLinearOperator)]
            (hessian,) = operators(HessianLinearOperator)
            if task == "trace":
                return hutchinson_trace(hessian, count)
            if task == "lanczos":
                return eigsh(hessian.to_scipy(), k=1, ncv=count, maxiter=1, tol=1e9)
            if task == "hessian":
                return hessian @ torch.randn(hessian.shape[0], count, generator=generator)
            raise UnableError

        return run
    if tool == "hessian-eigenthings":
        import hessian_eigenthings as he

        hessian = he.HessianOperator(model, [(x, y)], he.supervised_loss(loss))
        gauss_newton = he.GGNOperator(model, [(x, y)], he.supervised_forward, he.supervised_loss_of_output(loss))

        def run():
            if task in ("traces", "trace"):
                used = [hessian, gauss_newton] if task == "traces" else [hessian]
                return [he.hutchinson(o, num_samples=count, seed=0) for o in used]
            if task == "lanczos":
                return he.lanczos_tridiagonal(hessian, torch.randn(hessian.size, generator=generator), count)
            if task == "hessian":
                return [hessian.matvec(torch.randn(hessian.size, generator=generator)) for _ in range(count)]
            raise UnableError

        return run
    from pyhessian import hessian

    def run():
        if task not in ("trace", "lanczos"):
            raise UnableError
        computation = hessian(model, loss, data=(x, y), cuda=False)
        # With this tolerance the trace never stops before its last probe.
        found = computation.trace(count, tol=-math.inf) if task == "trace" else computation.density(count, 1)
        model.zero_grad(set_to_none=True)
        return found

    return run


def measured(tool: str, task: str, model_name: str) -> dict:
    """Seconds and MiB of one case, in this process."""
    import warnings

    import torch
    from torch import nn

    from nme.activations import ACTIVATIONS
    from nme.models import MODELS as KNOWN

    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    name, shape, settings, examples = MODELS[model_name]
    model = KNOWN[name](name=name, **settings).build(shape, 10, ACTIVATIONS.parse("gelu")).eval()
    x, y = torch.randn(examples, *shape), torch.randint(10, (examples,))
    loss = nn.CrossEntropyLoss()
    try:
        run = work(tool, *TASKS[task], model, loss, x, y)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.perf_counter()
        run()
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}
    except (UnableError, ImportError) as error:
        return {"unable": type(error).__name__}


def main() -> None:
    """Run every case and write docs/benchmarks/curvature.csv and the table in docs/benchmarks.md."""
    import pandas as pd
    import torch

    rows = []
    for model_name in MODELS:
        for task in TASKS:
            found: dict[str, list[dict]] = {tool: [] for tool in TOOLS}
            for _ in range(REPEATS):
                for tool in TOOLS:
                    if found[tool] and "unable" in found[tool][-1]:
                        continue
                    command = [sys.executable, __file__, tool, task, model_name]
                    done = subprocess.run(command, capture_output=True, text=True, check=False)
                    result = (
                        json.loads(done.stdout.splitlines()[-1])
                        if not done.returncode
                        else {"unable": done.stderr[-300:]}
                    )
                    found[tool].append(result)
            for tool, results in found.items():
                if "unable" in results[-1]:
                    print(f"{model_name} | {task} | {tool}: {results[-1]['unable']}", flush=True)
                    continue
                row = {"model": model_name, "task": task, "tool": tool}
                row["seconds"] = statistics.median(r["seconds"] for r in results)
                row["peak_mib"] = statistics.median(r["mib"] for r in results)
                rows.append(row)
                print(*row.values(), sep=" | ", flush=True)
    table = pd.DataFrame(rows)
    folder = Path(__file__).parents[1] / "docs"
    table.to_csv(folder / "benchmarks-curvature.csv", index=False, float_format="%.4g")
    cells = table.assign(
        cell=[f"{s:.2f} s, {m:.0f} MiB" for s, m in zip(table["seconds"], table["peak_mib"], strict=True)]
    )
    wide = cells.pivot(index=["model", "task"], columns="tool", values="cell").reindex(columns=list(TOOLS)).fillna("–")
    order = [(m, t) for m in MODELS for t in TASKS]
    lines = [f"| model | work | {' | '.join(TOOLS)} |", "| --- " * (2 + len(TOOLS)) + "|"]
    lines += [f"| {m} | {t} | {' | '.join(wide.loc[(m, t)])} |" for m, t in order]
    page = folder / "benchmarks.md"
    head, _, rest = page.read_text(encoding="utf-8").partition("<!-- curvature -->\n")
    _, _, tail = rest.partition("<!-- end -->\n")
    note = f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads, median of {REPEATS} runs.\n\n"
    page.write_text(f"{head}<!-- curvature -->\n{note}{chr(10).join(lines)}\n<!-- end -->\n{tail}", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) == 4:
        print(json.dumps(measured(*sys.argv[1:])))
    else:
        main()
