"""Harmless questions that the mini's own decoder asks, and its own answers to them in text.

Nobody else's data is needed: the decoder continues the opening of a user's turn under a system prompt that
names an everyday topic. What it declines to answer is left out, as a modality adaptation would.
"""

import re
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from flax import nnx

from rrs_jax.evaluate.judges import Phrases
from rrs_jax.generate import Generator, Prompt, SamplingConfig
from rrs_jax.inputs.processor import Processor
from rrs_jax.progress import Progress

OPENINGS = (
    "How do I", "How can I", "How should I", "How does", "How do", "How is", "How are", "How long does",
    "How long should", "How many", "How much", "How often should", "How far", "How old", "How did",
    "How would you", "How might", "How could", "What is", "What are", "What was", "What were", "What does",
    "What do", "What did", "What makes", "What causes", "What happens when", "What happens if",
    "What kind of", "What kinds of", "What should I", "What can I", "What would", "What is the best way to",
    "What is the difference between", "What is the meaning of", "What is a good", "What are some",
    "What are the benefits of", "What time", "What color", "What role", "What tools", "What ingredients",
    "What steps", "Why is", "Why are", "Why do", "Why does", "Why did", "Why was", "Why should I",
    "Why would", "Why can", "When is", "When was", "When should I", "When did", "When do", "When does",
    "Where is", "Where are", "Where can I", "Where do", "Where does", "Where did", "Where should I",
    "Who is", "Who was", "Who invented", "Who wrote", "Which is", "Which are", "Which animals",
    "Which country", "Which foods", "Which kind of", "Is it", "Is there", "Are there", "Can you explain",
    "Can you tell me", "Can I", "Could you describe", "Could you suggest", "Do I need", "Does",
    "Do you know", "Should I", "Would you recommend", "Will",
)  # fmt: skip
TOPICS = (
    "cooking", "baking bread", "gardening", "house plants", "dogs", "cats", "birds", "wild animals",
    "the sea", "rivers and lakes", "mountains", "the weather", "the seasons", "the planets", "the stars",
    "physics", "chemistry at school", "biology", "mathematics", "the human body", "healthy food", "sleep",
    "sport", "running", "swimming", "football", "cycling", "yoga", "chess", "board games", "music",
    "learning the piano", "singing", "painting", "photography", "films", "theatre", "books", "poetry",
    "writing letters", "languages", "grammar", "world history", "ancient Rome", "inventions",
    "famous scientists", "geography", "capital cities", "travel", "trains", "airplanes", "cars", "traffic",
    "houses", "furniture", "cleaning", "laundry", "clothes", "knitting", "shopping", "saving money",
    "banks", "jobs", "interviews", "school", "studying", "teachers", "friendship", "families", "children",
    "birthdays", "weddings", "holidays", "gifts", "museums", "computers", "telephones", "the internet",
    "email", "electricity", "solar power", "recycling", "farming", "forests", "insects", "tea and coffee",
    "fruit", "vegetables", "cheese", "camping", "hiking", "first aid", "doctors", "dentists", "glasses",
    "hobbies", "woodworking", "repairing things", "bicycles",
)  # fmt: skip
# Stems that a harmless everyday question does not need; the decoder's own refusals take out the rest.
UNWANTED = re.compile(
    r"\b(kill|murder|bomb|weapon|gun|drug|steal|stole|hack|suicid|porn|sex|rape|terror|racis|nazi|poison|attack|illegal|"
    r"abus|violen|explosi|hitler|slave|genocid|tortur|fraud|scam|cheat|blackmail|kidnap|assault)\w*", re.I
)  # fmt: skip
SPEAKABLE = re.compile(r"[A-Z][A-Za-z' ,-]*\?")
MIN_WORDS, MAX_WORDS = 5, 18


def ask_questions(model: nnx.Module, processor: Processor, *, samples: int, batch_size: int, seed: int) -> list[str]:
    """Distinct questions of 5 to 18 words in the order in which they were drawn."""
    random = np.random.default_rng(seed)
    prompts = []
    for i in range(samples):
        topic, opening = TOPICS[random.integers(len(TOPICS))], OPENINGS[random.integers(len(OPENINGS))]
        text = f"<|im_start|>system\nYou ask short everyday questions about {topic}.<|im_end|>\n<|im_start|>user\n{opening}"
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


def wanted(question: str) -> bool:
    words = question.split()
    return bool(SPEAKABLE.fullmatch(question)) and MIN_WORDS <= len(words) <= MAX_WORDS and not UNWANTED.search(question)


def answer_questions(
    model: nnx.Module, processor: Processor, questions: list[str], *, max_new_tokens: int, batch_size: int
) -> dict[int, tuple[list[int], bool]]:
    """Greedy answers in text by question's place: token ids, and whether the answer ended by itself.

    Declined answers are left out, those with a disclaimer too: otherwise the bridge would teach to over-refuse.
    So are programs, which nobody would listen to.
    """
    judge = Phrases()
    prompts = [Prompt(key=i, row=(processor.encode(question), [], [])) for i, question in enumerate(questions)]
    answers: dict[int, tuple[list[int], bool]] = {}

    def keep(i: int, tokens: list[int]) -> None:
        kind = judge.judge(questions[i], processor.decode(tokens), "benign").kind
        text = processor.decode(tokens)
        if kind == "answer" and len(tokens) >= 4 and not text.startswith("As an AI") and "```" not in text:
            answers[i] = (tokens, len(tokens) < max_new_tokens)

    sampling = SamplingConfig(max_new_tokens=max_new_tokens, greedy=True)
    _generate(model, processor, sampling, prompts, batch_size, keep, "answering")
    return answers


def _generate(model, processor: Processor, sampling, prompts, batch_size: int, keep: Callable, what: str) -> None:
    generator = Generator(model, sampling, eos_token_ids=processor.eos_token_ids, batch_size=batch_size)
    with Progress(len(prompts), what, "questions") as progress:

        def finished(key, tokens):
            keep(key, tokens)
            progress.update()

        generator.generate(prompts, jnp.zeros((1, model.config.text.hidden_size)), finished)
