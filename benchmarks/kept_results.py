"""What the archives of finished members below docs/results hold: where the numbers of docs/science.md come from.

    python benchmarks/kept_results.py [--write]

Each archive has the results of finished jobs, which carry their settings, versions, data and duration. ``--write`` puts
the table into docs/results/README.md.
"""

import argparse
import io
import json
import statistics
import tarfile
from collections import Counter, defaultdict
from pathlib import Path

import pyarrow.parquet as pq
from page import ROOT, markdown_table, replace_section

RESULTS = ROOT / "docs" / "results"


def records(archive: Path) -> dict[str, dict]:
    """The record of each result in an archive, by its path."""
    found = {}
    with tarfile.open(archive) as files:
        for member in files:
            if member.name.endswith(".parquet"):
                content = files.extractfile(member)
                assert content is not None
                found[member.name] = json.loads(pq.read_schema(io.BytesIO(content.read())).metadata[b"nme"])
    return found


def core_hours(found: dict[str, dict]) -> float:
    """Of all jobs; one takes the median seconds of those like it, since some were suspended for a while."""
    alike = defaultdict(list)
    for name, record in found.items():
        _, _, stage, recipe, _, method, *_ = name.split("/")
        alike[stage, recipe, method].append(record["seconds"])
    return sum(len(seconds) * statistics.median(seconds) for seconds in alike.values()) / 3600


def seeds_of_cells(found: dict[str, dict]) -> list[int]:
    """How many seeds each cell has, ascending."""
    seeds: Counter[str] = Counter()
    for name, record in found.items():
        if "/train/" in name:
            seeds[name.partition("/seed=")[0]] += len(record["spec"]["seeds"])
    return sorted(seeds.values())


def counted(values: list[str]) -> str:
    """Distinct values with the number of jobs of each, if there are several."""
    counts = Counter(values)
    return ", ".join(value if len(counts) == 1 else f"{value} ({n})" for value, n in counts.most_common())


def row(archive: Path) -> list[str]:
    """The table's row on one archive."""
    found = records(archive)
    trained = [record for name, record in found.items() if "/train/" in name]
    data = {
        record["spec"]["recipe"]["dataset"]: tuple(record["data"][part]["sha256"][:12] for part in ("train", "test"))
        for record in trained
    }
    versions = [f"{r['nme']}, Python {r['python']}, PyTorch {r['torch']}" for r in found.values()]
    return [
        archive.parent.name,
        f"{len(trained)}, {len(found) - len(trained)}",
        str(sum(len(record["spec"]["seeds"]) for record in trained)),
        counted([str(seeds) for seeds in seeds_of_cells(found)]),
        f"{core_hours(found):.1f}",
        counted(versions),
        counted([record["device"] for record in found.values()]),
        "; ".join(f"{name} {train}, {test}" for name, (train, test) in sorted(data.items())),
    ]


def main() -> None:
    """Print the table, and with ``--write`` put it into docs/results/README.md."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    header = [
        "scale",
        "jobs that train, that measure",
        "members",
        "seeds (cells)",
        "core-hours",
        "versions",
        "device (jobs)",
    ]
    rows = [row(archive) for archive in sorted(RESULTS.glob("*/members.tar.xz"))]
    text = markdown_table([*header, "data, sha256 of train and test"], rows)
    print(text)
    if options.write:
        replace_section("kept results", text, RESULTS / "README.md")


if __name__ == "__main__":
    main()
