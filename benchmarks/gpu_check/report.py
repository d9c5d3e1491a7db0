"""What a run leaves behind: all numbers as JSON and parquet, a short table, and the step times that planning uses."""

import json
import platform
from pathlib import Path

import torch

from gpu_check.laptop import SMALL
from gpu_check.session import Session
from nme.errors import NmeError
from nme.methods import METHODS
from nme.runtime.device import device_name

STEPS = Path(__file__).parents[2] / "src" / "nme" / "grid" / "gpu_steps.json"
REHEARSAL = (
    "A rehearsal: tiny networks stand in for those named, 'compiled' steps are not compiled, images are random unless\n"
    "--data is given, and no time or accuracy means anything."
)
COLUMNS = ("part", "network", "case", "quantity", "value", "bar", "ok", "note")


def facts(session: Session) -> dict:
    """What the numbers depend on."""
    found = {"device": device_name(session.device), "torch": str(torch.__version__), "quick": session.quick}
    found |= {"python": platform.python_version(), "threads": torch.get_num_threads()}
    if session.cuda:
        found |= {
            "gpus": torch.cuda.device_count(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def write(session: Session) -> list[Path]:
    """Write all numbers: JSON always, parquet if pyarrow is there; returns the files."""
    path = session.folder / "gpu.json"
    path.write_text(
        json.dumps({**facts(session), "rows": session.rows}, indent=1, ensure_ascii=False), encoding="utf-8"
    )
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        return [path]
    rows = [{column: row[column] for column in COLUMNS} for row in session.rows]
    numbers = dict.fromkeys(("value", "bar"), pa.float64()) | {"ok": pa.bool_()}
    schema = pa.schema({column: numbers.get(column, pa.string()) for column in COLUMNS})
    table = pa.Table.from_pylist(rows, schema.with_metadata({"nme": json.dumps(facts(session))}))
    parquet.write_table(table, path.with_suffix(".parquet"))
    return [path, path.with_suffix(".parquet")]


def table(rows: list[dict], name: str) -> str:
    """The short table: a line per kind of check, then steps over SGD, then what failed, missed or was skipped."""
    lines = [name, ""]
    groups: dict[tuple[str, str, str], list[dict]] = {}
    for row in rows:
        checked = row["part"] in ("right", "reproducible") and row["quantity"] != "duration in s"
        if checked and row["value"] is not None:
            groups.setdefault((row["part"], row["network"], row["quantity"]), []).append(row)
    for (part, network, quantity), found in groups.items():
        values = [row["value"] for row in found]
        worst = max(values) if "error" in quantity else min(values)
        passed = sum(row["ok"] is True for row in found)
        verdict = f"{passed}/{len(found)} ok" if any(row["ok"] is not None for row in found) else "no bar"
        lines.append(f"{part:13} {network:44.44} {quantity:13} worst {worst:9.2g}  {verdict}")
    lines += ["", *_steps(rows)]
    lines += [
        f"{row['part']:13} {row['network']:24.24} {row['case']:32.32} {row['quantity']:28.28} {row['value']:.4g}"
        for row in rows
        if row["network"] in ("matrix product", "loaders") or row["quantity"] in ("test accuracy", "finished")
    ]
    took = [f"{row['part']} {row['value']:.0f} s" for row in rows if row["quantity"] == "duration in s"]
    lines += ["", f"took: {', '.join(took)}"]
    titles = {"failed or missed": lambda row: row["ok"] is False, "skipped": lambda row: row["quantity"] == "skipped"}
    for title, wanted in titles.items():
        found = [row for row in rows if wanted(row)]
        lines += ["", f"{title}: {len(found) or 'nothing'}"]
        for row in found:
            value = "" if row["value"] is None else f" {row['value']:.3g} (bar {row['bar']:g})"
            lines.append(
                f"  {row['part']}: {row['network']} {row['case']} {row['quantity']}{value} {row['note']}".rstrip()
            )
    return "\n".join(lines)


def _steps(rows: list[dict]) -> list[str]:
    """Time and counted operations over SGD's of each method, for each network and variant."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        if row["part"] == "fast" and row["value"] is not None:
            found.setdefault(row["network"], {}).setdefault(row["case"], {})[row["quantity"]] = row["value"]
    lines = []
    for network, cases in found.items():
        shown = {case: numbers for case, numbers in cases.items() if "time over SGD" in numbers}
        if not shown:
            continue
        sgd = cases.get("sgd", {})
        peak = sgd.get("part of the matmul peak", float("nan"))
        lines.append(
            f"fast          {network}: SGD {1e3 * sgd.get('seconds', float('nan')):.3g} ms, {peak:.0%} of the peak"
        )
        for case, numbers in shown.items():
            counted = numbers.get("counted operations", 0) / sgd.get("counted operations", 1)
            counted = f"{counted:5.2f} counted" if counted else ""
            lines.append(f"  {case:26} {numbers['time over SGD']:5.2f} steps of SGD   {counted}".rstrip())
    for network, cases in found.items():
        for case, numbers in cases.items():
            if "time over eager SGD" in numbers:
                lines.append(f"fast          {network}: {case} {numbers['time over eager SGD']:.2f} steps of eager SGD")
            elif network in SMALL and "seconds" in numbers:
                lines.append(f"fast          {network}: {case} {1e3 * numbers['seconds']:.3g} ms")
    return [*lines, ""] if lines else []


def keep(results: Path, steps: Path = STEPS) -> int:
    """Add a run's step times to the table that ``nme plan`` reads, in place of the card's earlier ones.

    Raises:
        NmeError: the run was a rehearsal, or on a CPU.
    """
    found = json.loads(results.read_text(encoding="utf-8"))
    if found["quick"] or not found.get("gpus"):
        raise NmeError(f"{results}: has no step times of a GPU at full size (found {found['device']}, quick or a CPU)")
    kept = [row for row in json.loads(steps.read_text(encoding="utf-8")) if row["card"] != found["device"]]
    fields = ("model", "input_shape", "precision", "channels_last", "batch_size")
    added = [
        {"card": found["device"], **{key: row[key] for key in fields}, "method": row["case"], "seconds": row["value"]}
        for row in found["rows"]
        if row["quantity"] == "seconds" and row["case"] in METHODS and "precision" in row
    ]
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in [*kept, *added])
    steps.write_text(f"[\n{lines}\n]\n" if lines else "[]\n", encoding="utf-8")
    return len(added)
