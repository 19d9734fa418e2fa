"""Audio language models as Flax NNX modules.

One alphabet of axes, in einsum strings, partition rules and comments alike:

    B batch    T query position    S key position    L layer
    N heads    K key-value heads   G heads per key-value head    H head width
    D model width    F mlp width    V vocabulary    R LoRA rank
    C clips    M mel bins    P encoder positions    A audio tokens
"""
