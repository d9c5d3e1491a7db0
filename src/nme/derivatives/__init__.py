"""Exact first to third derivatives of a network's loss."""
