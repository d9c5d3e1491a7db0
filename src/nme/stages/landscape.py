"""Landscape stage: loss and NME of a small network over two of its weights (Figure 1)."""

import time
import warnings
from pathlib import Path

import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor
from torch.func import vmap

from nme.activations import ACTIVATIONS, Activation
from nme.curvature.landscape import POINTS_AT_ONCE, Network
from nme.grid.specs import LandscapeSpec
from nme.outputs import parquet
from nme.outputs.provenance import provenance


def landscape(spec: LandscapeSpec, output: Path) -> None:
    """Write one row per grid point: activation, w_a, w_b, loss, nme, and every hidden pre-activation.

    ``nme`` is the Frobenius norm of ``Network.nme``.

    Args:
        spec: the network and the grid.
        output: the parquet file.
    """
    began = time.monotonic()
    network = Network(spec.widths, spec.seed)
    line = torch.linspace(-spec.half_width, spec.half_width, spec.points, dtype=torch.float64)
    pairs = torch.cartesian_prod(line, line)
    frames = []
    for name in spec.activation:
        activation = ACTIVATIONS.parse(name)

        def measure(pair: Tensor, activation: Activation = activation) -> tuple[Tensor, Tensor, Tensor]:
            z, before = network.forward(network.at(pair), activation)
            return 0.5 * (z - network.y) ** 2, network.nme(pair, activation).norm(), before

        with warnings.catch_warnings():  # torch itself calls functions that it deprecated
            warnings.simplefilter("ignore", FutureWarning)
            loss, nme, before = vmap(measure, chunk_size=POINTS_AT_ONCE)(pairs)
        frame = pd.DataFrame({"activation": name, "w_a": pairs[:, 0], "w_b": pairs[:, 1], "loss": loss, "nme": nme})
        units = [f"preactivation_{u}" for u in range(before.shape[1])]
        frames.append(pd.concat([frame, pd.DataFrame(before.numpy(), columns=units)], axis=1))
    table = pa.Table.from_pandas(pd.concat(frames, ignore_index=True), preserve_index=False)
    record = provenance(spec.as_json(), time.monotonic() - began, torch=str(torch.__version__), device="cpu")
    parquet.write(table, output, record)
