"""Audio language models as Flax NNX modules.

One alphabet of axes for the whole package, in einsum strings, docstrings and comments:

    B rows of a batch     T tokens of a row, query positions    S key positions
    D hidden width        F mlp width          V vocabulary     L layers of a stack
    H heads               K key-value heads    G heads of one key-value head, H = K·G    E head width
    R LoRA rank           I, O inputs and outputs of a linear
    N, M samples of two kinds                  J chosen positions of a row
    C clips               A audio tokens of a clip
    Q prompts in flight   U answers of each, B = Q·U
    P slots of a prompt in the cache           W slots of an answer

Axes without a letter are words: (C, bins, frames). A second axis of a kind has the small letter: (L, R, r).
"""
