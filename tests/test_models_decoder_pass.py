"""The tree layout of a pass through the decoder; the passes themselves are compared model by model."""

import jax.numpy as jnp

from rrs_jax.models.decoder_pass import TreeLayout


def test_a_suffix_sees_the_prefix_and_itself():
    """The example of `TreeLayout.mask`: a prefix of one token, two common tokens, suffixes of two and one."""
    layout = TreeLayout(jnp.array([[1, 2, 3, 4, 3]]), jnp.array([[0, 0, 1, 1, 2]]))
    seen = [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 0, 0, 1],
    ]
    assert layout.mask(1).astype(int).tolist() == [[seen]]
    assert layout.mask().astype(int).tolist() == [[[row[1:] for row in seen]]]
