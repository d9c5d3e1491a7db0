"""Decisions on the paper's claims: contrasts, tests, verdicts, the map."""
