"""Figures: ``draw(table, spec, record)`` returns a drawing and its numbers. No torch here.

To add a figure with a drawing of its own: a module of ``drawings`` with ``draw``, its name in
``config.figure.DRAWINGS``, and a file of that name in ``config/figures``.
"""
