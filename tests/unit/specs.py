"""Settings of the prepare stage, as ``grid.dataset_spec`` makes them."""


def spec_in_memory(source: str, train: int | None = None, test: int | None = None, **changes: object) -> dict:
    """A dataset that is read into memory, under its own name."""
    named = {"dataset": source, "source": source}
    return {**named, "train": train, "test": test, "label_noise": 0.0, "version": 1, **changes}
