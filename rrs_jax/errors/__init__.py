"""The one exception that a user is meant to read, the exit status with which a command tells it,
interruptions, and messages without API keys and without what an address may hold of a secret."""

from rrs_jax.errors.interruption import (
    INTERRUPTED,
    interrupt_main,
    interruptible,
    interruption_asked,
    saved_at_end,
    stop_if_asked,
)
from rrs_jax.errors.kinds import Damaged, SpeechFault, UserError
from rrs_jax.errors.scrubbing import keep_secret, scrub, shown_address, told, visible
from rrs_jax.errors.status import exit_status, replace_unprintable, tell_traceback

__all__ = [
    "Damaged",
    "INTERRUPTED",
    "SpeechFault",
    "UserError",
    "exit_status",
    "interrupt_main",
    "interruptible",
    "interruption_asked",
    "keep_secret",
    "replace_unprintable",
    "saved_at_end",
    "scrub",
    "shown_address",
    "stop_if_asked",
    "tell_traceback",
    "told",
    "visible",
]
