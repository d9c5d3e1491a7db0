"""Train stage: the members of one cell, one after the other, and their metrics per epoch.

If several processes share a training, the first one writes all files.
"""

import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import torch

from nme.data.load import load
from nme.errors import Interrupted, NmeError
from nme.grid.specs import TrainSpec
from nme.methods import METHODS
from nme.outputs import parquet
from nme.outputs.provenance import provenance, spec_hash
from nme.runtime import processes
from nme.runtime.device import device_name
from nme.training.checkpoint import Checkpoint, StopRequest
from nme.training.member import Job, Member
from nme.training.snapshots import Snapshots

COLUMNS = pa.schema(
    {
        "seed": pa.int64(),
        "epoch": pa.int64(),
        "learning_rate": pa.float64(),
        "train_loss": pa.float64(),
        "train_accuracy": pa.float64(),
        "gradient_norm": pa.float64(),
        "test_loss": pa.float64(),
        "test_accuracy": pa.float64(),
        "diverged": pa.bool_(),
        "seconds": pa.float64(),
    }
)

Report = Callable[[dict], None]


def train(
    spec: TrainSpec,
    manifest: Path,
    output: Path,
    device: torch.device,
    checkpoint_seconds: float = 60,
    report: Report = lambda row: None,
    log: Callable[[str], None] = print,
) -> None:
    """Train every member of ``spec`` and write their metrics, one row per member and epoch (``COLUMNS``).

    Args:
        spec: the cell, its recipe and its seeds.
        manifest: path of the prepared dataset's manifest.
        output: the parquet file; ``resume.pt`` in the same folder holds the state of a stopped job, and the folder
            ``snapshots`` holds the networks at the fractions ``spec.snapshots`` of the training.
        device: device that trains.
        checkpoint_seconds: interval between saved states.
        report: called with the row of each finished epoch.
        log: called with each sentence for the log.

    Raises:
        NmeError: a setting or an input file is not usable.
        Interrupted: SIGTERM or SIGINT came; the state is saved.
    """
    began = time.monotonic()
    recipe, settings = spec.recipe, spec.as_json()
    data, test, contents = load(manifest, device, recipe.resolution, recipe.threads)
    if contents["spec"]["dataset"] != recipe.dataset:
        raise NmeError(f"{manifest}: holds '{contents['spec']['dataset']}', but the recipe needs '{recipe.dataset}'")
    method, strength, classes = METHODS.parse(spec.method), float(spec.strength), len(contents["classes"])
    job = Job(recipe, spec.activation, method, strength, data, test, classes, device)
    if job.steps_per_epoch == 0:
        raise NmeError(f"batch_size is {recipe.batch_size} (allowed: up to {len(data.labels)}, the training examples)")
    identity = {
        "settings": spec_hash(settings),
        "data": spec_hash(contents["splits"]),
        "device": device.type,
        "version of PyTorch": str(torch.__version__),
    }
    first = processes.rank() == 0  # this process writes all files
    checkpoint = Checkpoint(output.with_name("resume.pt"), identity, checkpoint_seconds, reader=not first)
    state, sentence = checkpoint.load()
    processes.meet()  # no process changes files before all have read them
    if sentence:
        log(sentence)
    rows, earlier, devices = (state["rows"], state["seconds"], state["devices"]) if state else ([], 0.0, [])
    devices = list(dict.fromkeys([*devices, device_name(device)]))  # a job may continue on a different machine
    steps = recipe.epochs * job.steps_per_epoch
    snapshots = Snapshots(output.with_name("snapshots"), spec.snapshots, steps, state is None) if first else None
    done = {row["seed"] for row in rows}
    with StopRequest() as stop:
        for seed in spec.seeds:
            if seed in done:
                continue
            member = Member(job, seed)
            if state and state["member"] and state["member"]["seed"] == seed:
                member.restore(state["member"])
            while not member.finished:
                if snapshots:
                    snapshots.take(seed, member.steps, member.model)
                row = member.advance()
                if row:
                    report(row)
                # All processes stop after the same step; otherwise the remaining ones would wait forever.
                stopped_by = processes.any_of(bool(stop.received)) and (stop.received or "another process")
                if first and (stopped_by or checkpoint.due()):
                    seconds = earlier + time.monotonic() - began
                    checkpoint.save({"rows": rows, "member": member.state(), "seconds": seconds, "devices": devices})
                if stopped_by:
                    raise Interrupted(f"stopped by {stopped_by}; run it again to continue from {checkpoint.path}")
            if snapshots and not member.diverged:  # a member may diverge at the step of a snapshot
                snapshots.take(seed, member.steps, member.model)
            rows = rows + member.rows
    processes.meet()
    if snapshots is None:
        return
    record = provenance(
        settings,
        earlier + time.monotonic() - began,
        torch=str(torch.__version__),
        device=", then ".join(devices),
        data=contents["splits"],
    )
    parquet.write(pa.Table.from_pylist(rows, schema=COLUMNS), output, record)
    checkpoint.remove()
    # Last: a continued job needs the old snapshots as long as its checkpoint exists.
    snapshots.finish()
