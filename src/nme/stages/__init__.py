"""One module per stage, which is one verb of the command line and one rule of the workflow."""
