"""Instances of everything in a registry, new names included."""

from itertools import product

from hypothesis import strategies as st

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


def numbers_for(parameter):
    """A strategy for the numbers that a parameter takes."""
    if parameter.choices:
        return st.sampled_from(parameter.choices)
    return st.integers(1, 10**9) if parameter.whole else st.floats(1e-12, 1e12)


def measured_on(quantity, batch):
    """What a quantity is given to measure on: the batch, or a list of training batches."""
    other = batch._replace(inputs=batch.inputs.flip(0), labels=batch.labels.roll(1))
    return [batch, other] if quantity in ON_TRAINING_BATCHES else batch
