"""From the configuration to jobs: cells, paths, specs, the plan and the status. No torch."""
