"""Figures with a drawing of their own, one module each."""
