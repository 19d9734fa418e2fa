"""Training of the adapters: `step` (one sharded jit) and its `optimiser`, `loop`, `checkpoints` and
`resumption` from these, `metrics`."""
