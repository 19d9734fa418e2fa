"""The servers that a run's evaluation asks: which, how, and one small question to each before work begins."""

from ml_collections import ConfigDict

from rrs_jax.config.vocabulary import SETTING_MODES
from rrs_jax.evaluate.air_bench import try_judge
from rrs_jax.evaluate.endpoint import Endpoint, EndpointConfig
from rrs_jax.evaluate.endpoint_engine import try_endpoint
from rrs_jax.evaluate.judges.judge import JudgeSettings
from rrs_jax.evaluate.judges.registry import make_judges

SAMPLING = ("max_new_tokens", "greedy", "temperature", "top_p", "top_k", "repetition_penalty")


def try_servers(config: ConfigDict, wanted: set[str]) -> None:
    """Asks each server that the stages `wanted` need one small question, unless it has replied within a day.

    Raises UserError where one cannot be asked, or a judge's verdict cannot be read. The trained model is not
    asked where it is yet to be trained.
    """
    if "evaluate" not in wanted:
        return
    if config.endpoint.url:
        settings = config.evaluate.setting
        modes = [mode for mode in config.evaluate.modes if any(mode in SETTING_MODES[s] for s in settings)]
        asked = [] if "train" in wanted else [served_model(config, config.strategy)]
        if config.evaluate.vanilla and config.strategy != "vanilla":
            asked.append(served_model(config, "vanilla"))
        for server in asked:
            try_endpoint(server, sampling_of(config), modes)
    served = [name for name in config.evaluate.judges if name.startswith("llm:")]
    for judge in make_judges(served, judge_settings(config)) if served else ():
        judge.try_out()
    if config.evaluate.air_bench is not None:
        try_judge(Endpoint(EndpointConfig.from_group(config.judge), cache=None))


def judge_settings(config: ConfigDict) -> JudgeSettings:
    """Returns what a run's judges need of its config, without the run's own model."""
    judge = config.judge
    return JudgeSettings(
        server=EndpointConfig.from_group(judge) if judge.url else None, temperature=judge.temperature
    )


def served_model(config: ConfigDict, name: str) -> EndpointConfig:
    """Returns the endpoint's model that answers for `name`: "vanilla", or the run's strategy."""
    before_training = name == "vanilla" and config.strategy != "vanilla"
    model = config.endpoint.vanilla_model if before_training else config.endpoint.model
    return EndpointConfig.from_group(config.endpoint, model)


def sampling_of(config: ConfigDict) -> dict:
    """Returns the decoding that an endpoint is asked for."""
    return {name: config.generate[name] for name in SAMPLING}
