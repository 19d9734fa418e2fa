"""Several GPUs of one host: what a training step sends between them, what it takes, what more would take."""
