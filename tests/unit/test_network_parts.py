"""Modules in the order of ``nn.Module.modules``."""

import torch
from torch import nn

from nme.derivatives.network_parts import modules_of


def shared():
    """Modules and parameters in several places, a place without module, frozen parameters, a parametrisation."""
    block = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    model = nn.ModuleDict({"a": block, "b": nn.ModuleList([nn.Linear(3, 3), block, block[0]])})
    model["c"] = nn.utils.parametrizations.orthogonal(nn.Linear(3, 3))
    model["d"] = nn.Linear(3, 3, bias=False)
    model["d"].weight = block[0].weight
    model["d"].register_module("none", None)
    model["b"][0].bias.requires_grad_(False)
    model.extra = nn.ParameterList([torch.ones(2), block[0].bias])
    return model


def test_same_order_and_each_once():
    model = shared()
    assert [id(m) for m in modules_of(model)] == [id(m) for m in model.modules()]
