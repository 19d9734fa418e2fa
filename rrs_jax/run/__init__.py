"""One run and many: stages, the run's folder, what stages share, sweeps, the dry run."""
