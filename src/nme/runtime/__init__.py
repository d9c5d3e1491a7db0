"""The device, processes that share a training, random streams."""
