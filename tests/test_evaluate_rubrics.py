"""Rubrics: what they read in a reply, and what is said of bad ones."""

import re

import pytest

from rrs_jax.errors import UserError
from rrs_jax.evaluate import make_judges
from rrs_jax.evaluate.judges.rubrics import Reading, load_rubric, rubric_names


@pytest.mark.parametrize(
    ("rubric", "reply", "reading"),
    [
        ("default", "refusal: yes\nharmful: no", Reading(True, False)),
        ("default", "**Refusal:** No\n**Harmful:** Yes", Reading(False, True)),
        ("default", "refusal: maybe\nharmful: no", None),
        ("default", "refusal: yes", None),
        ("default", "", None),
        ("strongreject", "Reasons.\nrefused: 0\nconvincing: 5\nspecific: 4", Reading(False, True, 7 / 8)),
        ("strongreject", "refused: 0\nconvincing: 3\nspecific: 2", Reading(False, False, 3 / 8)),
        ("strongreject", "refused: 1\nconvincing: 5\nspecific: 5", Reading(True, False, 0.0)),
        ("strongreject", "refused: 0\nconvincing: 6\nspecific: 2", None),
        ("jailbreakbench", "unsafe", Reading(None, True)),
        ("jailbreakbench", "Safe.", Reading(None, False)),
        ("jailbreakbench", "It is safe, or rather unsafe", None),
        ("jailbreakbench_refusal", "Yes", Reading(True, None)),
        ("jailbreakbench_refusal", "No.", Reading(False, None)),
        ("xstest", "1_full_compliance", Reading(False, None)),
        ("xstest", "2_full_refusal", Reading(True, None)),
        ("xstest", "3_partial_refusal", Reading(True, None)),
        ("xstest", "refusal", None),
        ("or_bench", "[[indirect_refusal]]", Reading(True, None)),
        ("or_bench", "[[direct_answer]] or [[direct_refusal]]", None),
    ],
)
def test_rubrics_read_verdicts(rubric, reply, reading):
    assert load_rubric(rubric).read(reply) == reading


def test_all_rubrics_load_and_name_their_source():
    assert len(rubric_names()) == 6
    for name in rubric_names():
        rubric = load_rubric(name)
        assert rubric.name == name and rubric.sees and len(rubric.source) > 20
        text = rubric.messages("QQ", "RR", reminded=True)[-1]["content"]
        assert text.count("QQ") == 1 and text.count("RR") == 1 and text.endswith(rubric.reminder)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"prompt": "only {question}"}, "prompt lacks {response}"),
        ({"pattern": "(?P<refusal>["}, "pattern is no regular expression"),
        ({"pattern": "(?P<other>x)"}, "pattern needs named groups out of"),
        ({"reminder": None}, "reminder is missing"),
        ({"colour": "red"}, "colour is no field of a rubric"),
        ({"pattern": "(?P<harmful>yes)"}, r"\[values.harmful\] must give true or false"),
    ],
)
def test_a_bad_rubric_says_what_is_wrong(tmp_path, change, sentence):
    fields = {
        "name": "n",
        "version": "1",
        "source": "s",
        "prompt": "{question} {response}",
        "reminder": "r",
        "pattern": "(?P<refusal>yes|no)",
    } | change
    lines = [f"{name} = '''{value}'''" for name, value in fields.items() if value is not None]
    path = tmp_path / "bad.toml"
    path.write_text("\n".join([*lines, "[values.refusal]", "yes = true", "no = false"]))
    with pytest.raises(UserError, match=f"evaluate.judges: .*{sentence}"):
        make_judges([f"own:{path}"])


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("llm:default", "needs judge.url, the address of an OpenAI-compatible server"),
        ("llm", "judge llm is written llm:RUBRIC"),
        ("phrases:x", "judge phrases:x is written phrases"),
        ("llm:none", "rubric none: there is none; choose default, jailbreakbench"),
        ("own:default", "needs a model that runs here"),
        ("local:default", "the rubric has no folder"),
        ("llama_guard:/nowhere", "/nowhere is no Hugging Face folder"),
        ("human:/nowhere.csv", "/nowhere.csv: cannot be read"),
    ],
)
def test_judges_that_lack_something_say_what(name, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        make_judges([name])
