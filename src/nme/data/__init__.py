"""Prepared files: writing, reading, batches and augmentation."""
