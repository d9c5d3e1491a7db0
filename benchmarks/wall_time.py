"""Where the time of a whole run goes: from what the run left behind, and a few direct measurements.

    python benchmarks/wall_time.py [--root FOLDER] [--scale NAME]

After a run from scratch, ``make all``, in one go: ``FOLDER`` holds its logs, results and configuration, and nothing in
it is changed. Seconds of a job are those of Snakemake's ``benchmark`` where a rule has one, else those between two
lines of Snakemake's log, which tells whole seconds. Within a job they come from the result's own record.
"""

import argparse
import csv
import os
import re
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from page import ROOT, markdown_table, processor, replace_section

from nme.config.project import Project, load_project, read_yaml
from nme.outputs import parquet

TIMESTAMP = "%a %b %d %H:%M:%S %Y"
RESULTS = {"train": "metrics.parquet", "measure": "measured.parquet"}


@dataclass
class Run:
    """One run of Snakemake, from its log.

    Attributes:
        elapsed: seconds from the log's first line to its last one.
        planning: seconds of them before the first job.
        cores: given to it.
        seconds: of each job, by rule.
    """

    elapsed: float
    planning: float
    cores: int
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


def read_log(path: Path) -> Run | None:
    """The run that this log is of; None if it has not ended, or has run nothing.

    A log's name says when it begins.
    """
    text = path.read_text(encoding="utf-8")
    elapsed = re.search(r"^Elapsed time: (?:(\d+) days?, )?(\d+):(\d+):([\d.]+)$", text, re.MULTILINE)
    cores = re.search(r"^Provided cores: (\d+)", text, re.MULTILINE)
    if not elapsed or not cores:
        return None
    days, hours, minutes, seconds = (float(part or 0) for part in elapsed.groups())
    began = datetime.strptime(path.name.partition(".snakemake")[0], "%Y-%m-%dT%H%M%S.%f")
    run = Run(86400 * days + 3600 * hours + 60 * minutes + seconds, 0.0, int(cores[1]))
    now, first, started = began, None, {}
    for line in text.splitlines():
        if re.fullmatch(r"\[\w{3} \w{3} +\d+ [\d:]+ \d{4}\]", line):
            now = datetime.strptime(line[1:-1], TIMESTAMP)
            first = first or now
        elif match := re.fullmatch(r" +jobid: (\d+)", line):
            started[match[1]] = now
        elif match := re.fullmatch(r"Finished jobid: (\d+) \(Rule: (\w+)\)", line):
            run.seconds[match[2]].append((now - started[match[1]]).total_seconds())
    # Timestamps are cut to whole seconds: half a one is missing on average.
    run.planning = max(0.0, (first - began).total_seconds() + 0.5) if first else run.elapsed
    return run if run.seconds else None


def latest_runs(root: Path, scale: str, jobs: int) -> Run:
    """The latest ones that together trained ``jobs`` cells, as one run (``make figures``, then ``make all``)."""
    logs = sorted((root / ".snakemake" / "log").glob("*.snakemake.log"), reverse=True)
    found = None
    for path in logs:
        run = read_log(path) if f"results/{scale}/" in path.read_text(encoding="utf-8") else None
        if not run:
            continue
        if found:
            run.elapsed, run.planning = run.elapsed + found.elapsed, run.planning + found.planning
            for rule, seconds in found.seconds.items():
                run.seconds[rule] += seconds
        found = run
        if len(found.seconds["train"]) >= jobs:
            break
    trained = len(found.seconds["train"]) if found else 0
    if trained != jobs:
        raise SystemExit(
            f"{root / '.snakemake' / 'log'}: tells of {trained} training jobs at scale '{scale}', and {jobs} have left "
            "a benchmark file; make the run from scratch (make clean)"
        )
    return found


@dataclass
class Stage:
    """Seconds of all jobs of the stage ``train`` or ``measure``.

    Attributes:
        jobs: how many.
        whole: of the jobs, as Snakemake saw them.
        recorded: as the results say: without the start of the process.
        epochs: of training steps and evaluations.
        evaluations: how many of them each recipe had.
    """

    jobs: int = 0
    whole: float = 0.0
    recorded: float = 0.0
    epochs: float = 0.0
    evaluations: dict[str, int] = field(default_factory=lambda: defaultdict(int))


def read_stage(root: Path, scale: str, stage: str) -> Stage:
    """What the stage's results and the benchmark files beside its logs say."""
    found = Stage()
    logs = root / "logs" / scale / stage
    for path in sorted(logs.rglob("*.benchmark.tsv")):
        folder = root / "results" / scale / stage / path.relative_to(logs).parent / path.name.partition(".")[0]
        with path.open(encoding="utf-8") as file:
            found.whole += float(next(csv.DictReader(file, delimiter="\t"))["s"])
        table, record = parquet.read(folder / RESULTS[stage])
        found.jobs += 1
        found.recorded += record["seconds"]
        if stage == "train":
            found.epochs += sum(table["seconds"].to_pylist())
            tested = table["test_loss"]  # null where an epoch was not tested
            found.evaluations[path.relative_to(logs).parts[0]] += len(tested) - tested.null_count
    return found


def evaluation_seconds(project: Project, root: Path, recipe_name: str) -> float:
    """Of one evaluation on the test set, now, in this process."""
    import torch

    from nme.data.load import load
    from nme.grid.paths import dataset_files
    from nme.methods import METHODS
    from nme.training.member import Job, Member

    recipe = project.scale.recipes[recipe_name]
    torch.set_num_threads(recipe.threads)
    cpu = torch.device("cpu")
    manifest = root / dataset_files(project, recipe_name)["manifest"]
    data, test, described = load(manifest, cpu, recipe.resolution, recipe.threads)
    member = Member(Job(recipe, "gelu", METHODS.parse("sgd"), 0.0, data, test, len(described["classes"]), cpu), seed=0)
    return median_seconds(member.evaluate, 9)


def median_seconds(run: Callable[[], object], repeats: int = 5) -> float:
    """Of a call, after one that does not count."""
    run()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def starts(root: Path, scale: str) -> list[tuple[str, float]]:
    """What a process costs before it works, step by step, and Snakemake's planning; each measured now."""
    snakemake = [sys.executable, "-m", "snakemake", "--dry-run", "--quiet", "all", "--nolock"]
    ending = ["--config", f"scale={scale}", "--", "all"]

    def command(*arguments: str) -> Callable[[], object]:
        environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
        options = {"cwd": root, "env": environment, "check": True, "capture_output": True}
        return lambda: subprocess.run(arguments, **options)

    def python(*arguments: str) -> Callable[[], object]:
        return command(sys.executable, *arguments)

    return [
        ("Python alone", median_seconds(python("-c", "pass"))),
        ("`import torch`", median_seconds(python("-c", "import torch"))),
        (
            "all that `nme train` imports",
            median_seconds(python("-c", "import nme.cli, nme.training.progress, nme.stages.train")),
        ),
        (
            "all that `nme measure` imports",
            median_seconds(python("-c", "import nme.cli, nme.curvature, nme.stages.measure")),
        ),
        ("all that `nme plot` imports", median_seconds(python("-c", "import nme.cli, nme.figures.curves"))),
        ("`nme --version`", median_seconds(python("-m", "nme.cli", "--version"))),
        ("`snakemake --version`", median_seconds(command(*snakemake[:3], "--version"))),
        ("`snakemake --dry-run`, all done", median_seconds(command(*snakemake, *ending), 3)),
        ("`snakemake --dry-run --forceall`", median_seconds(command(*snakemake, "--forceall", *ending), 3)),
    ]


def imports(module: str, count: int = 8) -> list[tuple[str, float]]:
    """The packages whose own modules take longest while ``module`` is imported, in seconds (``-X importtime``)."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", f"import {module}"], capture_output=True, text=True, check=True
    )
    own = defaultdict(float)
    for match in re.finditer(r"^import time: +(\d+) \| +\d+ \| +([\w.]+)", done.stderr, re.MULTILINE):
        own[match[2].partition(".")[0]] += int(match[1]) / 1e6
    return sorted(own.items(), key=lambda item: -item[1])[:count]


def rows_of(run: Run, train: Stage, measure: Stage, evaluation: float) -> list[tuple[str, int, float]]:
    """Where core-seconds go: what, in how many jobs, seconds. Together they are all that the run had."""
    rows = [
        ("training steps", train.jobs, train.epochs - evaluation),
        ("evaluation on the test set", train.jobs, evaluation),
        ("training jobs: data, checks, snapshots, writing", train.jobs, train.recorded - train.epochs),
        ("training jobs: start of the process, imports", train.jobs, train.whole - train.recorded),
    ]
    if measure.jobs:
        rows += [
            ("measuring curvature", measure.jobs, measure.recorded),
            ("measuring: start of the process, imports", measure.jobs, measure.whole - measure.recorded),
        ]
    benchmarked = {"train", *(["measure"] if measure.jobs else []), "all"}
    for rule, seconds in sorted(run.seconds.items(), key=lambda item: -sum(item[1])):
        if rule not in benchmarked:
            rows.append((f"rule `{rule}`", len(seconds), sum(seconds)))
    used = sum(seconds for _, _, seconds in rows)
    planning = run.cores * run.planning
    rows.append(("Snakemake before the first job (no core works)", 0, planning))
    rows.append(("Snakemake between jobs, idle cores", 0, run.cores * run.elapsed - used - planning))
    return rows


def section(run: Run, train: Stage, measure: Stage, evaluation: float, begin: list, packages: list) -> str:
    """The text of the page."""
    rows = rows_of(run, train, measure, evaluation)
    total, steps = run.cores * run.elapsed, rows[0][2]
    work = sum(seconds for _, jobs, seconds in rows if jobs)
    body = [[what, str(n or ""), f"{s:.1f}", f"{100 * s / total:.1f} %"] for what, n, s in rows]
    beside = (train.whole - train.epochs) / train.jobs
    return "\n\n".join(
        [
            f"{processor()}, {run.cores} cores: {run.elapsed / 60:.1f} minutes from Snakemake's first line to its "
            f"last, {total:.0f} core-seconds.",
            markdown_table(["", "jobs", "core-seconds", "share"], body),
            f"Training steps are {100 * steps / work:.1f} % of what all jobs took, and {100 * steps / total:.1f} % of "
            f"all core-seconds. A training job takes {beside:.2f} s beside its epochs, on average.",
            "What a start costs, measured apart (medians):",
            markdown_table(["", "s"], [[what, f"{seconds:.2f}"] for what, seconds in begin]),
            "Packages that take longest while `nme.train` is imported, each without what it imports: "
            f"{', '.join(f'{name} {seconds:.2f} s' for name, seconds in packages)}.",
        ]
    )


def main() -> None:
    """Measure and write the table of docs/benchmarks.md."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, default=ROOT, help="where the run was made")
    parser.add_argument("--scale", default="laptop")
    options = parser.parse_args()
    root, scale = options.root.resolve(), options.scale
    values = {**(read_yaml(root / "config" / "config.yaml") or {}), "scale": scale}
    project = load_project(values, root / "config")
    train, measure = read_stage(root, scale, "train"), read_stage(root, scale, "measure")
    run = latest_runs(root, scale, train.jobs)
    evaluation = sum(n * evaluation_seconds(project, root, recipe) for recipe, n in train.evaluations.items())
    text = section(run, train, measure, evaluation, starts(root, scale), imports("nme.stages.train"))
    replace_section("wall time", f"Scale {scale}. {text}")
    print(text)


if __name__ == "__main__":
    main()
