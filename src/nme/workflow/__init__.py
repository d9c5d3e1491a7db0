"""What the Snakefile calls before it submits anything."""
