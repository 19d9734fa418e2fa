"""The model as it is under a system prompt that asks for safety (`rivals.system_prompt`); nothing is
trained."""

from rrs_jax.strategies.served import Serving


def serve(work) -> Serving:
    system = work.config.rivals.system_prompt
    return Serving([work.vanilla], {"system": system}, system=system)
