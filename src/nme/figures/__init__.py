"""Figures: ``draw(table, spec, record)`` → the drawing and the numbers in it. No torch here.

To add a figure with a drawing of its own: a module of ``drawings`` with ``draw``, its name in ``DRAWINGS``, and a file
of that name in ``config/figures``.
"""

DRAWINGS = ("claims", "fig1", "fig6", "map", "mechanism", "spectrum", "traces")
