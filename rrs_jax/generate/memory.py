"""Memory of answers in flight on one device, and how many of them fit.

What lies there while answers are made, besides the weights and the clips' embeddings: the cache of prompts
and answers, two of it while it grows; and the largest of the working memories of the compiled functions.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rrs_jax.distributed.mesh import rows_multiple
from rrs_jax.generate.steps import CHUNK_STEPS
from rrs_jax.models.decoder_layer import DecoderConfig
from rrs_jax.models.fused_attention import serves

WHOLE_ROWS = 8  # of a product on a GPU
PREFILLS = 4  # parts in which a whole batch of prompts is prefilled
# Answers beyond which the products, not the weights that they read, take a step's time, so that more of them
# would only wait longer for each other.
ENOUGH = {"gpu": 1024, "cpu": 128}
# Answers up to which reading the weights takes a step's time: with half of them it would save less than a
# program for them costs.
FEW = {"gpu": 128, "cpu": 16}
STEPS_A_DOUBLING = 8  # of the numbers tried, so that about the same memory gives the same compiled functions
USED_SHARE = 0.92  # of what is free; the rest is for kernels' workspaces and what the allocator cannot join
LOGITS = 8  # float32 arrays (rows, vocabulary) while tokens are chosen: penalties, softmax, a full sort
PREFILLED = (
    3  # copies of a prefill's keys and values: as computed, in the cache's order, on their way into it
)
# Numbers a token while a prompt is read, as multiples of (hidden, mlp) width.
ACTIVATIONS = (8, 3)


@dataclasses.dataclass(frozen=True)
class Flight:
    """Sizes of what is in flight: `queries` prompts of at most `width` tokens with `samples` answers each, of
    which `prefill` prompts are read at once."""

    queries: int
    prefill: int
    samples: int
    width: int


@dataclasses.dataclass(frozen=True)
class FlightPlan:
    """Facts that decide how much memory an answer takes and how many there may be.

    Attributes:
      text: the decoder's sizes.
      dtype: of the model.
      cache_dtype: of keys and values; auto is the model's.
      new_tokens: of an answer, at most.
      fused: whether one kernel does a layer's attention while decoding; None: where it serves.
    """

    text: DecoderConfig
    dtype: jax.typing.DTypeLike
    cache_dtype: str
    new_tokens: int
    mesh: Mesh
    fused: bool | None = None

    def kept_in(self) -> jnp.dtype:
        """Dtype of keys and values."""
        return jnp.dtype(self.dtype if self.cache_dtype == "auto" else self.cache_dtype)

    def is_fused(self) -> bool:
        if self.fused is not None:
            return self.fused
        return serves(self.kept_in(), self.text.head_dim, self.mesh.size // self.mesh.shape["data"])

    def growth(self) -> int:
        """Factor between one number of an answer's slots and the next. The kernel reads used slots alone, so
        it can have more of them at once: one program less, and one copy less."""
        return 4 if self.is_fused() else 2

    def most_slots(self) -> int:
        """Slots of the longest answer, in whole chunks; its last token is never in the cache."""
        return CHUNK_STEPS * max(1, math.ceil((self.new_tokens - 1) / CHUNK_STEPS))

    def flight(self, groups: int, samples: int, width: int, batch_size: int) -> Flight:
        """At most `batch_size` answers, rounded up to whole rows of the mesh, to `groups` prompts in as few
        equal waves as that allows."""
        multiple = rows_multiple(self.mesh)
        most = _round_up(batch_size / samples, multiple)
        queries = _round_up(groups / math.ceil(groups / most), multiple)
        if jax.default_backend() == "gpu" and queries * samples > WHOLE_ROWS**2:
            # Around a product in 16 bit whose rows are no multiple of 8, XLA copies what it reads and writes,
            # which takes as long as a twentieth of the answers.
            whole = math.lcm(multiple, WHOLE_ROWS // math.gcd(samples, WHOLE_ROWS))
            below = most // whole * whole
            queries = min(_round_up(queries, whole), below if below >= 0.95 * most else most)
        return Flight(queries, _round_up(queries / PREFILLS, multiple), samples, width)

    def fitting(self, groups: int, samples: int, width: int, free: float) -> int:
        """The largest number of answers in flight, at most `ENOUGH` on each part of `data`, that `free` bytes
        of a device hold; the least possible where none fits."""
        most = ENOUGH.get(jax.default_backend(), ENOUGH["gpu"]) * self.mesh.shape["data"]
        tried = [size for size in _numbers() if size <= most]
        for size in reversed(tried):
            if self.bytes(self.flight(groups, samples, width, size)) <= USED_SHARE * free:
                return size
        return tried[0]

    def few(self) -> int:
        """The number of answers that shrinks no further."""
        return FEW.get(jax.default_backend(), FEW["gpu"]) * self.mesh.shape["data"]

    def bytes(self, flight: Flight) -> float:
        """Bytes on one device, of those along `data` that share the prompts; what else cuts the model holds
        the same prompts."""
        text, item = self.text, jnp.dtype(self.dtype).itemsize
        queries, prefill = (math.ceil(n / self.mesh.shape["data"]) for n in (flight.queries, flight.prefill))
        token = self.token_bytes()
        prompts = queries * flight.width * token
        answers = queries * flight.samples * self.most_slots() * token
        logits = 4 * LOGITS * text.vocab_size  # a row's
        layer = item * sum(a * b for a, b in text.linears().values()) if text.quantize != "none" else 0
        # Where no kernel attends, a layer's keys and values are taken out of their stack, in the model's
        # dtype.
        layer += (prompts + answers) / text.num_hidden_layers * max(1.0, item / self._cached())
        hidden, mlp = ACTIVATIONS
        read = prefill * flight.width
        states = item * (hidden * text.hidden_size + mlp * text.intermediate_size)
        if jax.default_backend() != "gpu" or item == 4:  # no flash attention: scores are whole matrices
            states += 2 * 4 * text.num_attention_heads * flight.width
        prefilling = PREFILLED * read * token + read * states + prefill * flight.samples * logits
        decoding = queries * flight.samples * logits + layer
        if jax.default_backend() == "gpu":
            # XLA tries kernels on copies of what they read, of which the output head is the largest.
            decoding += text.vocab_size * text.hidden_size * item
        if self.mesh.size > self.mesh.shape["data"]:  # products cut over the other axes: a cache cut alike
            decoding += prompts + answers
        # All numbers of slots that an answer has had, side by side, since their holes do not join.
        growing = prompts + answers / (self.growth() - 1)
        seen = queries * flight.samples * text.vocab_size
        return prompts + answers + seen + max(growing, prefilling, decoding)

    def token_bytes(self) -> float:
        """Bytes of one token's keys and values in all layers."""
        text = self.text
        return 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * self._cached()

    def _cached(self) -> float:
        """Bytes of one number of the cache."""
        dtype = self.kept_in()
        return 1 + 4 / self.text.head_dim if dtype == jnp.int8 else dtype.itemsize


def _round_up(n: float, multiple: int) -> int:
    return math.ceil(n / multiple) * multiple


def _numbers() -> list[int]:
    """1, 2, ..., 16, 18, 20, ..., 32, 36, ...: `STEPS_A_DOUBLING` to each doubling."""
    small = list(range(1, STEPS_A_DOUBLING))
    return small + [2**n * (STEPS_A_DOUBLING + i) for n in range(16) for i in range(STEPS_A_DOUBLING)]
