"""Checks and settings that the Snakefile runs before it submits anything."""
