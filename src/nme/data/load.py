"""Load a prepared dataset onto the training device."""

import json
from pathlib import Path

import torch
from torch.utils.dlpack import from_dlpack

from nme.data.examples import Split
from nme.data.in_memory import Data
from nme.data.prepared import DATASET_FILES, sha256
from nme.errors import NmeError


def load(
    manifest: Path, device: torch.device, resolution: int | None = None, workers: int = 0
) -> tuple[Split, Split, dict]:
    """Load the training split, the test split and the manifest of a prepared dataset.

    Args:
        manifest: path of the manifest.
        device: device of the batches.
        resolution: side of the network's square input, px; for streamed images.
        workers: processes that decode streamed images.

    Raises:
        NmeError: a file is missing or differs from the manifest.
    """
    import pyarrow as pa

    try:
        contents = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NmeError(f"{manifest}: cannot be read ({error}). Prepare the dataset again.") from None
    if "shards" in contents:
        from nme.data import streamed

        return *streamed.load(manifest, contents, device, resolution, workers), contents
    shape = tuple(contents["shape"])
    column = (-1, *(1 for _ in shape[1:]))
    mean, std = (torch.tensor(contents[k], dtype=torch.float32, device=device).view(column) for k in ("mean", "std"))
    splits = []
    for name, expected in contents["splits"].items():
        path = manifest.with_name(DATASET_FILES[name])
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        except (OSError, pa.ArrowInvalid) as error:
            raise NmeError(f"{path}: cannot be read ({error}). Prepare the dataset again.") from None
        if sha256(path) != expected["sha256"]:
            raise NmeError(f"{path}: not the file that {manifest.name} describes. Prepare the dataset again.")
        # DLPack, because to_numpy() imports pandas. The tensors share the memory map, which is never written.
        inputs, labels = from_dlpack(table["input"].flatten()), from_dlpack(table["label"])
        splits.append(Data(inputs.view(-1, *shape).to(device), labels.to(device), mean, std))
    return splits[0], splits[1], contents
