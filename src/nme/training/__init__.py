"""Training one member, and continuing a job that was stopped."""
