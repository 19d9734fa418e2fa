"""Inputs of a model: log-mel features of a clip, token ids of a prompt, batches in length buckets.

`audio` and `mel` need no model, `processor` needs its folder, `batching` makes `rrs_jax.models.batch.Batch`.
"""
