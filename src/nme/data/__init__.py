"""Prepared files, written and read."""
