"""AdamW on the adapters, its learning rates, and how many steps are averaged."""

import numpy as np
import optax

from rrs_jax.config.training import OptimiserConfig


def make_optimiser(config: OptimiserConfig, total_steps: int) -> optax.GradientTransformation:
    """One masked chain over the tree {"base": frozen, "lora": adapters}; nothing in it ever sees the base."""
    schedule = _schedule(config, total_steps)
    adamw = optax.adamw(schedule, config.b1, config.b2, config.eps, weight_decay=config.weight_decay)
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    return optax.masked(optax.chain(*clip, adamw), {"base": False, "lora": True})


def learning_rates(config: OptimiserConfig, total_steps: int) -> np.ndarray:
    """AdamW's rate in each step, float32 (total_steps,)."""
    counts = np.arange(total_steps)
    return np.broadcast_to(np.asarray(_schedule(config, total_steps)(counts), np.float32), counts.shape)


def averaged_steps(config: OptimiserConfig, total_steps: int) -> int:
    """How many of the last steps' adapters the result is the mean of."""
    return round(config.average * total_steps)


def _schedule(config: OptimiserConfig, total_steps: int) -> optax.Schedule:
    decay_steps = max(total_steps - config.warmup_steps, 1)
    schedule = {
        "constant": optax.constant_schedule(config.learning_rate),
        "linear": optax.linear_schedule(config.learning_rate, 0.0, decay_steps),
        "cosine": optax.cosine_decay_schedule(config.learning_rate, decay_steps),
    }[config.schedule]
    if config.warmup_steps:
        rise = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
        schedule = optax.join_schedules([rise, schedule], [config.warmup_steps])
    return schedule
