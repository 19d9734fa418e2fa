"""Training of the adapters: `step` (one sharded jit), `loop`, `checkpoints`, `metrics`."""
