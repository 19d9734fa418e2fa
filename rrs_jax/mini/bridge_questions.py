"""Everyday questions that a decoder asks, copies with other words, and its own answers to them in writing.

Nobody else's data is needed: the decoder continues the opening of a user's turn under a system prompt that
names a topic or, so that rarer words are heard too, a word of its own vocabulary. What it declines to answer
is left out, as a modality adaptation would. Questions with alarming words are never answered; the bridge
learns only to repeat them, so that it knows how those words sound. Lists of random words are only repeated
too.
"""

import re
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx

from rrs_jax.config.prompts import PROMPT_POOL, PROMPT_T, written_prompt
from rrs_jax.evaluate.judges.judge import Phrases
from rrs_jax.generate import Generator, Prompt, SamplingConfig
from rrs_jax.inputs.processor import Processor
from rrs_jax.mini.bridge_phrases import ALARMING, INSTRUCTIONS, OPENINGS, TOPICS
from rrs_jax.progress import Progress

SPEAKABLE = re.compile(r"[A-Z][A-Za-z' ,-]*\?")
MIN_WORDS, MAX_WORDS = 5, 18
WORDS_A_LIST = 6
# Ids of a byte-pair vocabulary rise as words become rare; beyond, most are pieces and other languages.
COMMON_IDS = 60_000
BARE_SHARE, INSTRUCTED_SHARE = 0.25, 0.25  # the other half of the questions has one of the paper's prompts
# Words that can be exchanged: lower case, so no name and no beginning, and none of the commonest.
CONTENT_WORD = re.compile(
    r"(?<=[ -])(?!(?:what|when|where|which|while|with|without|from|into|that|this|these|those|there|their|"
    r"they|them|have|does|been|being|will|would|could|should|about|before|after|between|during|through|than|"
    r"then|your|yours|some|more|most|many|much|very|often|long)\b)[a-z]{4,}(?=[ ,?-])"
)
ENDINGS = ("ing", "ed", "ly", "es", "s", "er", "ion", "ty", "al", "y")
EXCHANGED_SHARES = (0.5, 0.35, 0.15)  # of copies with one, two and three other words


def ask_questions(
    model: nnx.Module,
    processor: Processor,
    *,
    samples: int,
    batch_size: int,
    seed: int,
    word_share: float = 0.0,
) -> list[str]:
    """Returns distinct questions of 5 to 18 words in the order in which they were drawn.

    `word_share` of the samples are asked for with a word of the decoder's vocabulary, the others for a topic.
    """
    random = np.random.default_rng(seed)
    words = vocabulary_words(processor)
    prompts = []
    for i in range(samples):
        topic, opening = TOPICS[random.integers(len(TOPICS))], OPENINGS[random.integers(len(OPENINGS))]
        wish = f"You ask short everyday questions about {topic}."
        if word_share and random.random() < word_share:
            wish = (
                f"You ask short everyday questions. Each has the word {words[random.integers(len(words))]}."
            )
        text = f"<|im_start|>system\n{wish}<|im_end|>\n<|im_start|>user\n{opening}"
        ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        prompts.append(Prompt(key=(i, opening), row=(ids, [], []), seed=seed + i))
    sampling = SamplingConfig(max_new_tokens=28, temperature=0.8)
    found: dict[int, str] = {}

    def keep(key: tuple[int, str], tokens: list[int]) -> None:
        text = " ".join((key[1] + processor.decode(tokens)).split())
        question = text[: text.find("?") + 1]
        if wanted(question):
            found[key[0]] = question

    _generate(model, processor, sampling, prompts, batch_size, keep, "asking")
    distinct = {re.sub(r"\W+", " ", found[i].lower()): found[i] for i in sorted(found, reverse=True)}
    return list(distinct.values())[::-1]


def vocabulary_words(processor: Processor) -> list[str]:
    """Returns lower-case words of 4 to 12 letters that are one token each, commoner ones first."""
    vocabulary = processor.tokenizer.get_vocab()
    pieces = sorted((id, token) for token, id in vocabulary.items() if re.fullmatch("Ġ[a-z]{4,12}", token))
    return [token[1:] for id, token in pieces if id < COMMON_IDS]


def word_lists(processor: Processor, count: int, seed: int) -> list[str]:
    """Returns lists of WORDS_A_LIST random words of the decoder's vocabulary, to be spoken and repeated."""
    words = vocabulary_words(processor)
    drawn = np.random.default_rng([seed, count]).integers(len(words), size=(count, WORDS_A_LIST))
    return [", ".join(words[i] for i in row).capitalize() + "." for row in drawn]


def wanted(question: str) -> bool:
    """Returns whether a text is a question that a voice can say, of 5 to 18 words."""
    words = question.split()
    return bool(SPEAKABLE.fullmatch(question)) and MIN_WORDS <= len(words) <= MAX_WORDS


def draw_prompt(i: int, seed: int) -> str | None:
    """Draws the text that stands beside question i, an instruction or one of the paper's; None for none."""
    random = np.random.default_rng([seed, i])
    draw = random.random()
    if draw < BARE_SHARE:
        return None
    texts = INSTRUCTIONS if draw < BARE_SHARE + INSTRUCTED_SHARE else (*PROMPT_POOL, PROMPT_T)
    return texts[random.integers(len(texts))]


def read_prompt(question: str, text: str | None) -> str:
    """Returns the question as it is read, with the text that stands beside it when it is heard."""
    return question if text is None else written_prompt(question, text)


def exchange_words(questions: Sequence[str], seed: int) -> list[str | None]:
    """Returns a copy of each question with one to three words exchanged for others of all questions.

    A word makes place for one with the same ending, so that most copies can be said and asked. The decoder
    has to hear that one word to tell them apart, as it has to hear the word by which a harmful question
    differs from its rewrite; here both are harmless. None for a question with an alarming word, or without a
    word to exchange.
    """
    pool: dict[str, dict[str, None]] = {}
    for question in questions:
        if not ALARMING.search(question):
            for word in CONTENT_WORD.findall(question):
                pool.setdefault(_ending(word), {})[word] = None
    choices = {ending: list(words) for ending, words in pool.items()}
    return [
        _exchanged(question, choices, np.random.default_rng([seed, i]))
        for i, question in enumerate(questions)
    ]


def _exchanged(question: str, choices: dict[str, list[str]], random: np.random.Generator) -> str | None:
    places = [m for m in CONTENT_WORD.finditer(question) if len(choices.get(_ending(m[0]), ())) > 1]
    if not places or ALARMING.search(question):
        return None
    count = min(1 + int(random.choice(3, p=EXCHANGED_SHARES)), len(places))
    for place in sorted(random.choice(len(places), count, replace=False), reverse=True):
        old = places[place]
        words = choices[_ending(old[0])]
        new = words[random.integers(len(words))]
        while new == old[0]:
            new = words[random.integers(len(words))]
        question = question[: old.start()] + new + question[old.end() :]
    return question


def _ending(word: str) -> str:
    return next((ending for ending in ENDINGS if word.endswith(ending)), "")


def answer_questions(
    model: nnx.Module,
    processor: Processor,
    questions: Sequence[str],
    texts: Sequence[str | None],
    *,
    max_new_tokens: int,
    batch_size: int,
) -> dict[int, tuple[list[int], bool]]:
    """Answers the questions greedily in writing, each with the text that stands beside it.

    Returns by question's place its token ids, and whether the answer ended by itself. Questions with alarming
    words are not asked. Declined answers are left out, those with a disclaimer too: otherwise the bridge
    would teach to over-refuse. So are programs, which nobody would listen to.
    """
    judge = Phrases()
    prompts = [
        Prompt(key=i, row=(processor.encode(read_prompt(question, text)), [], []))
        for i, (question, text) in enumerate(zip(questions, texts, strict=True))
        if not ALARMING.search(question)
    ]
    answers: dict[int, tuple[list[int], bool]] = {}

    def keep(i: int, tokens: list[int]) -> None:
        kind = judge.judge(questions[i], processor.decode(tokens), "benign").kind
        text = processor.decode(tokens)
        if kind == "answer" and len(tokens) >= 2 and not text.startswith("As an AI") and "```" not in text:
            answers[i] = (tokens, len(tokens) < max_new_tokens)

    sampling = SamplingConfig(max_new_tokens=max_new_tokens, greedy=True)
    _generate(model, processor, sampling, prompts, batch_size, keep, "answering")
    return answers


def _generate(
    model, processor: Processor, sampling, prompts, batch_size: int, keep: Callable, what: str
) -> None:
    generator = Generator(model, sampling, eos_token_ids=processor.eos_token_ids, batch_size=batch_size)
    with Progress(len(prompts), what, "questions") as progress:

        def finished(key, tokens):
            keep(key, tokens)
            progress.update()

        generator.generate(prompts, jnp.zeros((1, model.config.text.hidden_size)), finished)
