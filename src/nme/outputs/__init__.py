"""Files that appear whole or not at all, with their provenance."""
