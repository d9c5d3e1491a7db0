"""Instances of everything in a registry, new names included."""

from itertools import product

import pytest
from hypothesis import strategies as st

from nme.activations import ACTIVATIONS
from nme.quantities import ON_TRAINING_BATCHES

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


# One activation of each kind: φ'' is 0, it is the slope of φ', it is prescribed.
KINDS = ("relu", "gelu", "augmented_relu")


def each_activation_and_place(names, places, kinds=KINDS, genuine=False):
    """Parametrize a test by ``activation`` and the ``names`` of a place: a network, with batch norm or without.

    Every activation in the first place, and one of each kind in every place: a network applies its activation entry by
    entry and knows nothing of it but its derivatives, so a fault of either shows in one of these pairs.
    """
    cases = [
        (activation, *place)
        for activation in every(ACTIVATIONS, ACTIVATION_NUMBERS)
        if activation.genuine or not genuine
        for place in (places if str(activation) in kinds else places[:1])
    ]
    return pytest.mark.parametrize(("activation", *names), cases, ids=case_id)


def case_id(value):
    return {False: "plain", True: "batch-norm"}[value] if isinstance(value, bool) else str(value)


def numbers_for(parameter):
    """A strategy for the numbers that a parameter takes."""
    if parameter.choices:
        return st.sampled_from(parameter.choices)
    return st.integers(1, 10**9) if parameter.whole else st.floats(1e-12, 1e12)


def measured_on(quantity, batch):
    """The data that a quantity takes: the batch, or a list of training batches."""
    other = batch._replace(inputs=batch.inputs.flip(0), labels=batch.labels.roll(1))
    return [batch, other] if quantity in ON_TRAINING_BATCHES else batch
