"""The vanilla model under a system prompt that asks for safety (`rivals.system_prompt`); nothing is
trained."""

from rrs_jax.strategies.served import Served


def serve(extracted, samples, frozen, config) -> Served:
    system = config.rivals.system_prompt
    return Served([frozen.model], {"system": system}, system=system)
