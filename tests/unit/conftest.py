"""Tests that take ``activation``, ``genuine`` or ``method`` run for all of a registry, new names included.

Unless they say themselves which they try.
"""

import torch
from registry_examples import ACTIVATION_NUMBERS, METHOD_NUMBERS, every

from nme.activations import ACTIVATIONS
from nme.methods import METHODS

torch.set_num_threads(1)


def names_in(arguments):
    return [arguments] if isinstance(arguments, str) else arguments


def pytest_generate_tests(metafunc):
    activations = list(every(ACTIVATIONS, ACTIVATION_NUMBERS))
    cases = {
        "activation": activations,
        "genuine": [a for a in activations if a.genuine],
        "method": list(every(METHODS, METHOD_NUMBERS)),
    }
    own = {name for mark in metafunc.definition.iter_markers("parametrize") for name in names_in(mark.args[0])}
    for argument, values in cases.items():
        if argument in metafunc.fixturenames and argument not in own:
            metafunc.parametrize(argument, values, ids=str)
