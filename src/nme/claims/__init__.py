"""Which of the paper's claims hold: contrasts, tests, verdicts, the map."""
