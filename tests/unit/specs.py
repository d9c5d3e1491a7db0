"""Specs of the prepare stage, as ``grid.specs.dataset_spec`` makes them."""

from nme.grid.specs import PrepareSpec


def spec_in_memory(source: str, train: int | None = None, test: int | None = None, **changes: object) -> PrepareSpec:
    """A dataset that is read into memory, under its own name."""
    settings = {"dataset": source, "source": source, "train": train, "test": test, "label_noise": 0.0, "version": 1}
    return PrepareSpec(**settings | changes)
