"""Makes judges from the names in `evaluate.judges`."""

from collections.abc import Sequence

from rrs_jax.config.vocabulary import JUDGES, JUDGES_WRITTEN
from rrs_jax.errors import UserError
from rrs_jax.evaluate.judges import model_judges
from rrs_jax.evaluate.judges.judge import FirstToken, Judge, JudgeSettings, Phrases
from rrs_jax.evaluate.judges.rubrics import load_rubric


def judge_problem(written: str) -> str | None:
    """Returns what is wrong with a judge's name, None where nothing is. Reads no file but a rubric."""
    name, _, rest = written.partition(":")
    if name not in JUDGES:
        return f"no judge is called {written}; choose from {JUDGES_WRITTEN}"
    if (JUDGES[name] is None) != (not rest):
        return f"judge {written} is written {name}" + ("" if JUDGES[name] is None else f":{JUDGES[name]}")
    if name in ("llm", "own", "local"):
        try:
            rubric = load_rubric(rest.partition("@")[0] if name == "llm" else rest)
        except UserError as error:
            return str(error).rstrip(".")
        if name == "local" and rubric.folder is None:
            return f"judge {written}: the rubric has no folder, the Hugging Face folder of the classifier"
    return None


def make_judges(names: Sequence[str], settings: JudgeSettings | None = None) -> list[Judge]:
    """Makes the judges of these names, in this order; the first one's rates are the summary's.

    Raises UserError for an unknown or repeated name, no name, or a judge that lacks what it needs.
    """
    settings = settings or JudgeSettings()
    problems = [problem for name in names if (problem := judge_problem(name))]
    if problems:
        raise UserError(f"evaluate.judges: {'; '.join(problems)}.")
    if not names or len(set(names)) < len(names):
        raise UserError("evaluate.judges: name each judge once, and at least one.")
    return [_make_judge(name, settings) for name in names]


def _make_judge(written: str, settings: JudgeSettings) -> Judge:
    name, _, rest = written.partition(":")
    from rrs_jax.evaluate.judges import sheet  # a command too, which Python wants to load by itself

    makers = {
        "phrases": lambda: Phrases(),
        "first_token": lambda: FirstToken(),
        "llm": lambda: model_judges.endpoint_judge(rest, settings),
        "own": lambda: model_judges.own_judge(rest, settings),
        "local": lambda: model_judges.local_judge(rest),
        "llama_guard": lambda: model_judges.LlamaGuard(rest),
        "human": lambda: sheet.Human(rest),
    }
    return makers[name]()
