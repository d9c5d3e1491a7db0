"""Tests that take ``activation``, ``genuine`` or ``method`` run for all of a registry, new names included."""

from itertools import product

import torch

from nme.activations import ACTIVATIONS
from nme.methods import METHODS

torch.set_num_threads(1)

# Tried for a parameter that takes any number, beside its default. A method's may be counts (of probes, say).
ACTIVATION_NUMBERS = (0.5, 1, 4)
METHOD_NUMBERS = (1, 2)


def every(registry, numbers):
    """An instance of each name with each combination of example parameters."""
    for name, cls in registry.items():
        settings = []
        for key, p in cls.parameters.items():
            values = p.choices or [*numbers, *([p.default] if p.default is not None else [])]
            settings.append([f"-{key}={value}" for value in dict.fromkeys(values)])
        for chosen in product(*settings):
            yield registry.parse("".join([name, *chosen]))


def pytest_generate_tests(metafunc):
    activations = list(every(ACTIVATIONS, ACTIVATION_NUMBERS))
    cases = {
        "activation": activations,
        "genuine": [a for a in activations if a.genuine],
        "method": list(every(METHODS, METHOD_NUMBERS)),
    }
    for argument, values in cases.items():
        if argument in metafunc.fixturenames:
            metafunc.parametrize(argument, values, ids=str)
