"""Tests that take ``activation``, ``genuine`` or ``method`` run for every one of the registry, new ones included."""

from itertools import product

import torch

from nme.activations import ACTIVATIONS
from nme.methods import METHODS

torch.set_num_threads(1)

NUMBERS = (0.5, 1, 4)  # tried for a parameter that takes any number, beside its default


def every(registry):
    """An instance of each name with each combination of example parameters."""
    for name, cls in registry.items():
        settings = []
        for key, p in cls.parameters.items():
            values = p.choices or [*NUMBERS, *([p.default] if p.default is not None else [])]
            settings.append([f"-{key}={value}" for value in dict.fromkeys(values)])
        for chosen in product(*settings):
            yield registry.parse("".join([name, *chosen]))


def pytest_generate_tests(metafunc):
    cases = {
        "activation": list(every(ACTIVATIONS)),
        "genuine": [a for a in every(ACTIVATIONS) if a.genuine],
        "method": list(every(METHODS)),
    }
    for argument, values in cases.items():
        if argument in metafunc.fixturenames:
            metafunc.parametrize(argument, values, ids=str)
