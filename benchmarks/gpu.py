"""The GPU path, checked by one command: right, reproducible, fast, true.

    PYTHONPATH=src python benchmarks/gpu.py [--parts right fast] [--minutes 9] [--data FILE]

It needs a GPU, PyTorch 2.11 or newer, numpy and scipy, and no network; what else it needs, it names at once. On a CPU,
``--device cpu --quick`` rehearses it with tiny sizes. docs/gpu.md says what is checked. The exit code is 1 if a check
of ``right`` or ``reproducible`` fails, 2 if something is missing. All numbers go to results/gpu; a short table is last.

    python benchmarks/gpu.py --pack DATA_DIR FILE     pack a part of CIFAR-10 for ``--data`` (where the pipeline is)
    python benchmarks/gpu.py --keep results/gpu/gpu.json     let ``nme plan`` use the measured step times
"""

import argparse
import sys
import time
from pathlib import Path

from gpu_check import needs

ROOT = Path(__file__).parents[1]
WEIGHTS = {"right": 150, "reproducible": 110, "fast": 220, "true": 170}  # how parts share the time
LONGEST = {"true": 300}  # seconds


def options_of(arguments: list[str]) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--quick", action="store_true", help="tiny sizes: a rehearsal")
    parser.add_argument("--parts", nargs="+", default=list(WEIGHTS), choices=list(WEIGHTS))
    parser.add_argument("--minutes", type=float, default=9.0, help="time of the whole run")
    parser.add_argument("--data", type=Path, help="a part of CIFAR-10, made by --pack; for the part 'true'")
    parser.add_argument("--folder", type=Path, default=ROOT / "results" / "gpu", help="where all numbers go")
    parser.add_argument("--pack", nargs=2, type=Path, metavar=("DATA_DIR", "FILE"))
    parser.add_argument("--keep", type=Path, metavar="JSON")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run the parts, write the numbers and print the table."""
    options, began = options_of(arguments), time.monotonic()
    sys.path.insert(0, str(ROOT / "src"))  # a checkout is enough
    lacking = needs.missing()
    if lacking:
        print(needs.message(lacking), file=sys.stderr)
        return 2
    from nme.errors import NmeError

    try:
        return _pack_or_keep(options) if options.pack or options.keep else _check(options, began)
    except NmeError as error:
        print(f"gpu: error: {error}", file=sys.stderr)
        return 2


def _pack_or_keep(options: argparse.Namespace) -> int:
    if options.pack:
        from gpu_check.pack import pack

        print(f"{options.pack[1]}: {pack(*options.pack) / 1e6:.0f} MB")
    else:
        from gpu_check import report

        print(f"{report.STEPS.relative_to(ROOT)}: {report.keep(options.keep)} step times")
    return 0


def _check(options: argparse.Namespace, began: float) -> int:
    from gpu_check import fast, report, reproducible, right, true
    from gpu_check.session import Session, release_memory

    from nme.runtime.device import prepare_device

    device = prepare_device(options.device, 1)
    options.folder.mkdir(parents=True, exist_ok=True)
    session = Session(device, options.quick, options.folder, 60 * options.minutes - (time.monotonic() - began))
    run = {"right": right.check, "reproducible": reproducible.check, "fast": fast.check}
    run["true"] = lambda session: true.check(session, options.data)
    parts = [part for part in run if part in options.parts]
    for number, part in enumerate(parts):
        now, weights = time.monotonic(), [WEIGHTS[later] for later in parts[number:]]
        seconds = min((session.ends - now - 5) * weights[0] / sum(weights), LONGEST.get(part, float("inf")))
        session.part_ends = now + seconds
        with session.guard(part, "the whole part"):
            run[part](session)
        release_memory(device)
        session.add(part, "the whole part", "", "duration in s", time.monotonic() - now)
        report.write(session)
    files = report.write(session)
    title = "PyTorch {torch} on {device}".format(**report.facts(session))
    print(report.table(session.rows, f"{title}\n{report.REHEARSAL}" if options.quick else title))
    print("\nall numbers:", *files)
    return 1 if session.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
