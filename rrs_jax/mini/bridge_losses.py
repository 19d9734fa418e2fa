"""A bridge's losses: of an answer's tokens, and of the states before the answer."""

import jax
import jax.numpy as jnp
from flax import nnx

TEMPERATURE = 0.1  # of the contrast between cosines


def answer_losses(
    model: nnx.Module, answer: jax.Array, heard: jax.Array, read: jax.Array | None = None
) -> dict[str, jax.Array]:
    """Returns cross-entropy, whether the likeliest token is the answer's, and the divergence, (B,) each.

    Args:
      answer: int32 (B,), the token.
      heard, read: (B, D), states behind the final norm from which it is predicted; without `read` there is no
        divergence.
    """
    log_student = jax.nn.log_softmax(model.logits(heard))
    chosen = jnp.take_along_axis(log_student, answer[:, None], axis=-1)[:, 0]
    losses = {"cross_entropy": -chosen, "agreement": log_student.argmax(-1) == answer}
    if read is not None:
        log_teacher = jax.nn.log_softmax(model.logits(read))
        losses["divergence"] = (jnp.exp(log_teacher) * (log_teacher - log_student)).sum(-1)
    return losses


def state_cosines(heard: jax.Array, read: jax.Array) -> jax.Array:
    """Returns the cosines (places, B, B) of each heard question's states with each read one's.

    Both (places, B, D) are standardised by the mean and the spread of the read ones.
    """
    centre = read.mean(1, keepdims=True)
    spread = read.std(1, keepdims=True) + 1e-6

    def directions(states: jax.Array) -> jax.Array:
        states = (states - centre) / spread
        return states / (jnp.linalg.norm(states, axis=-1, keepdims=True) + 1e-6)

    return jnp.einsum("lid,ljd->lij", directions(heard), directions(read))


def state_losses(heard: jax.Array, read: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns distance and contrast of the states before the answer, and the share told from all others.

    Answers hardly need what was asked in this state, since they can look back, and RRS has nothing else. The
    distance is the squared one, as a share of the spread of the read states over the batch. The contrast
    (InfoNCE, van den Oord et al. 2018) tells, by cosines of standardised states, which of the batch's read
    questions is the heard one, and the reverse; rows that differ by a word make it learn that word. Both are
    means over the places.

    Args:
      heard, read: float32 (places, B, D); `read` has no derivative.
    """
    read = jax.lax.stop_gradient(read)
    centre = read.mean(1, keepdims=True)
    distance = jnp.sum((heard - read) ** 2, (1, 2)) / jnp.sum((read - centre) ** 2, (1, 2))
    cosines = state_cosines(heard, read)
    own = jnp.arange(cosines.shape[1])

    def contrast(logits: jax.Array) -> jax.Array:
        return -jax.nn.log_softmax(logits)[:, own, own].mean()

    both = (contrast(cosines / TEMPERATURE) + contrast(cosines.swapaxes(1, 2) / TEMPERATURE)) / 2
    return distance.mean(), both, (cosines[-1].argmax(-1) == own).mean()
