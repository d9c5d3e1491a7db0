"""Curvature along a training, in one line of any loop (docs/theory.md, §7.2 and docs/theory.md, §7.8)."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nme.curvature.curvature import Curvature
from nme.curvature.estimators import traces
from nme.curvature.network import Forward
from nme.curvature.update_shares import diminished
from nme.derivatives.activate import Activate
from nme.derivatives.losses import Loss
from nme.derivatives.repeating import Draws
from nme.errors import NmeError

INSTALL = "pip install '.[workflow]' in a clone of nme, or use the recorder's rows"


class CurvatureRecorder:
    """Records traces and shares of the gradient penalty's update every n steps of a training.

    A row has ``step``; ``trace_H``, ``trace_G`` and ``trace_N`` with their standard errors, ``trace_H_error`` say;
    ``gradient_norm``; and the shares ``share_G``, ``share_N`` and ``share_N_phi``, ‖Aĝ‖/‖Hĝ‖ with ĝ = g/‖g‖. N_phi is
    the part of N from second derivatives of the activations in ``Activate`` layers (``nme.models.replacement``). An
    undefined number is NaN: all shares where g or Hĝ is 0, and that of N_phi in a model without such a layer.

    Args:
        model: any module; nothing of it is changed.
        loss: as for ``Curvature``.
        data: batches as for ``Curvature``, the same in each recording, so that rows can be compared.
        every: number of steps between two recordings; the first call of ``step`` records.
        probes: of the traces, 1 or more.
        seed: of the probes, which are the same in each recording.
        batch_norm: 'eval': running statistics; 'train': each batch's own, as in training.
        forward: as for ``Curvature``.

    Raises:
        NmeError: ``every`` or ``probes`` is less than 1, or as ``Curvature``.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Any] | Loss,
        data: Any,
        every: int = 100,
        probes: int = 4,
        seed: int = 0,
        batch_norm: str = "eval",
        forward: Forward | None = None,
    ):
        for name, value in (("every", every), ("probes", probes)):
            if value < 1:
                raise NmeError(f"{name} is {value} (expected 1 or more)")
        self.model, self.loss, self.data = model, loss, data
        self.every, self.probes, self.seed = every, probes, seed
        self.options: dict[str, Any] = {"batch_norm": batch_norm, "forward": forward}
        self.steps = 0
        self.rows: list[dict[str, float]] = []

    @property
    def gradients(self) -> float:
        """Cost of a recording in gradients of the data (3 F), counted for a convolutional network and one batch."""
        twin = 9 if self._has_twin() else 0
        return (3 + 6 * self.probes + 8 + twin) / 3

    def step(self) -> dict[str, float] | None:
        """Count a step; record it if it is one in ``every``, and return the row."""
        due = self.steps % self.every == 0
        self.steps += 1
        return self.record(self.steps - 1) if due else None

    def record(self, step: int) -> dict[str, float]:
        """Record the model as it is now, and return the row; the training's random numbers stay what they were."""
        draws = Draws(next(self.model.parameters(), torch.empty(0)).device)  # an iterator of a DataLoader draws one
        try:
            return self._recorded(step)
        finally:
            draws.restore()

    def _recorded(self, step: int) -> dict[str, float]:
        curvature = self._curvature()
        found = traces(curvature, self.probes, torch.Generator().manual_seed(self.seed))
        row: dict[str, float] = {"step": step}
        for symbol, estimate in found.items():
            row |= {f"trace_{symbol}": float(estimate.value), f"trace_{symbol}_error": float(estimate.error)}
        self.rows.append(row | self._shares(curvature))
        return self.rows[-1]

    def frame(self) -> Any:
        """All rows as a pandas frame.

        Raises:
            NmeError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise NmeError(f"pandas is not installed ({INSTALL})") from None
        return pandas.DataFrame(self.rows)

    def save(self, path: str | Path) -> None:
        """Write all rows to a parquet file.

        Raises:
            NmeError: pandas or pyarrow is not installed.
        """
        frame = self.frame()
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise NmeError(f"pyarrow is not installed ({INSTALL})") from None
        frame.to_parquet(path)

    def _curvature(self) -> Curvature:
        # Checked at the first recording, not at each.
        return Curvature(self.model, self.loss, self.data, check=not self.rows, **self.options)

    def _has_twin(self) -> bool:
        return any(isinstance(module, Activate) for module in self.model.modules())

    def _shares(self, curvature: Curvature) -> dict[str, float]:
        gradient = curvature.gradient()
        size = torch.linalg.vector_norm(gradient, dtype=torch.float64)
        shares = {"gradient_norm": size.item(), **dict.fromkeys(("share_G", "share_N", "share_N_phi"), math.nan)}
        if not 0 < size < math.inf:
            return shares
        direction = (gradient.double() / size).to(gradient.dtype)
        h, g, n = curvature.products(direction)
        parts = {"share_G": g, "share_N": n}
        if self._has_twin():
            with diminished(self.model) as changed:
                twin = n
                if changed:
                    plain = Curvature(self.model, self.loss, self.data, check=False, **self.options)
                    twin = plain.nme_product(direction)
            parts["share_N_phi"] = n - twin
        whole = torch.linalg.vector_norm(h, dtype=torch.float64).item()
        for name, part in parts.items():
            length = torch.linalg.vector_norm(part, dtype=torch.float64).item()
            shares[name] = length / whole if whole else math.nan
        return shares
