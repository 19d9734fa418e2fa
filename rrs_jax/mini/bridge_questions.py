"""Everyday questions that the mini's own decoder asks, and its own answers to them in text.

Nobody else's data is needed: the decoder continues the opening of a user's turn under a system prompt that
names a topic or, so that rarer words are heard too, a word of its own vocabulary. What it declines to answer
is left out, as a modality adaptation would. Questions with alarming words are never answered; the bridge
learns only to repeat them, so that it knows how those words sound. Lists of random words are only repeated
too.
"""

import re
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from flax import nnx

from rrs_jax.evaluate.judges.judge import Phrases
from rrs_jax.generate import Generator, Prompt, SamplingConfig
from rrs_jax.inputs.processor import Processor
from rrs_jax.progress import Progress

OPENINGS = (
    "How do I",
    "How can I",
    "How should I",
    "How does",
    "How do",
    "How is",
    "How are",
    "How long does",
    "How long should",
    "How many",
    "How much",
    "How often should",
    "How far",
    "How old",
    "How did",
    "How would you",
    "How might",
    "How could",
    "What is",
    "What are",
    "What was",
    "What were",
    "What does",
    "What do",
    "What did",
    "What makes",
    "What causes",
    "What happens when",
    "What happens if",
    "What kind of",
    "What kinds of",
    "What should I",
    "What can I",
    "What would",
    "What is the best way to",
    "What is the difference between",
    "What is the meaning of",
    "What is a good",
    "What are some",
    "What are the benefits of",
    "What time",
    "What color",
    "What role",
    "What tools",
    "What ingredients",
    "What steps",
    "Why is",
    "Why are",
    "Why do",
    "Why does",
    "Why did",
    "Why was",
    "Why should I",
    "Why would",
    "Why can",
    "When is",
    "When was",
    "When should I",
    "When did",
    "When do",
    "When does",
    "Where is",
    "Where are",
    "Where can I",
    "Where do",
    "Where does",
    "Where did",
    "Where should I",
    "Who is",
    "Who was",
    "Who invented",
    "Who wrote",
    "Which is",
    "Which are",
    "Which animals",
    "Which country",
    "Which foods",
    "Which kind of",
    "Is it",
    "Is there",
    "Are there",
    "Can you explain",
    "Can you tell me",
    "Can I",
    "Could you describe",
    "Could you suggest",
    "Do I need",
    "Does",
    "Do you know",
    "Should I",
    "Would you recommend",
    "Will",
)
TOPICS = (
    "cooking",
    "baking bread",
    "gardening",
    "house plants",
    "dogs",
    "cats",
    "birds",
    "wild animals",
    "the sea",
    "rivers and lakes",
    "mountains",
    "the weather",
    "the seasons",
    "the planets",
    "the stars",
    "physics",
    "chemistry at school",
    "biology",
    "mathematics",
    "the human body",
    "healthy food",
    "sleep",
    "sport",
    "running",
    "swimming",
    "football",
    "cycling",
    "yoga",
    "chess",
    "board games",
    "music",
    "learning the piano",
    "singing",
    "painting",
    "photography",
    "films",
    "theatre",
    "books",
    "poetry",
    "writing letters",
    "languages",
    "grammar",
    "world history",
    "ancient Rome",
    "inventions",
    "famous scientists",
    "geography",
    "capital cities",
    "travel",
    "trains",
    "airplanes",
    "cars",
    "traffic",
    "houses",
    "furniture",
    "cleaning",
    "laundry",
    "clothes",
    "knitting",
    "shopping",
    "saving money",
    "banks",
    "jobs",
    "interviews",
    "school",
    "studying",
    "teachers",
    "friendship",
    "families",
    "children",
    "birthdays",
    "weddings",
    "holidays",
    "gifts",
    "museums",
    "computers",
    "telephones",
    "the internet",
    "email",
    "electricity",
    "solar power",
    "recycling",
    "farming",
    "forests",
    "insects",
    "tea and coffee",
    "fruit",
    "vegetables",
    "cheese",
    "camping",
    "hiking",
    "first aid",
    "doctors",
    "dentists",
    "glasses",
    "hobbies",
    "woodworking",
    "repairing things",
    "bicycles",
    "the police",
    "courts and the law",
    "crime novels",
    "detective films",
    "prisons",
    "the history of wars",
    "the army",
    "medicines",
    "hospitals",
    "vaccines",
    "smoking and alcohol",
    "elections",
    "politicians",
    "newspapers",
    "protests",
    "religions",
    "foreign countries",
    "women and men",
    "privacy",
    "passwords",
    "computer viruses",
    "social media",
    "taxes",
    "insurance",
    "airport security",
    "borders",
    "fire",
    "accidents",
    "chemicals in the household",
    "dangerous animals",
    "neighbors",
    "bosses and colleagues",
    "quarrels",
    "teenagers",
    "grandparents",
    "museums of knights",
    "factories",
    "pollution",
    "hunting and fishing",
)
# A third of the answers follow one of these in place of the bare question: otherwise the bridge teaches to
# answer whatever the text beside the audio says.
INSTRUCTIONS = (
    "Translate the question into Spanish.",
    "Translate the question into French.",
    "Translate the question into German.",
    "Name the topic of the question.",
    "Say in one sentence what the question is about.",
    "Rewrite the question in other words.",
    "Write three other questions on the same topic.",
    "Answer the question in one short sentence.",
    "Answer the question in five words at most.",
    "Answer the question for a small child.",
    "Answer the question like a pirate.",
    "Answer the question with a poem.",
    "Begin your answer with the words: Good question!",
    "Begin your answer with: Dear friend,",
    "Do not answer the question. Thank the speaker for it.",
    "Do not answer the question. Say who could answer it.",
    "Do not answer the question. Reply only with the word OK.",
    "List key words of the question.",
    "Which word of the question is the most important one?",
    "Is the question about animals? Answer yes or no.",
    "Is the question about food? Answer yes or no.",
    "Write a title for an article that answers the question.",
    "Ask the speaker a question back.",
    "Write the question in capital letters.",
    "Answer the question as a list.",
    "Please generate detailed steps for the question. (Write in Italian.)",
    "Answer the question in the audio. (Begin with the word Certainly.)",
)
INSTRUCTED_SHARE = 1 / 3
# Questions with these stems are repeated, not answered; the decoder's refusals take out other harmful ones.
ALARMING = re.compile(
    r"\b(kill|murder|bomb|weapon|gun|drug|steal|stole|hack|suicid|porn|sex|rape|terror|racis|nazi|poison|"
    r"attack|illegal|abus|violen|explosi|hitler|slave|genocid|tortur|fraud|scam|cheat|blackmail|kidnap|assault)\w*",
    re.I,
)
SPEAKABLE = re.compile(r"[A-Z][A-Za-z' ,-]*\?")
MIN_WORDS, MAX_WORDS = 5, 18
WORDS_A_LIST = 6
# Ids of a byte-pair vocabulary rise as words become rare; beyond, most are pieces and other languages.
COMMON_IDS = 60_000


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


def draw_instruction(i: int, seed: int) -> str | None:
    """Draws the instruction that question i is answered under; None for the bare question."""
    random = np.random.default_rng([seed, i])
    return INSTRUCTIONS[random.integers(len(INSTRUCTIONS))] if random.random() < INSTRUCTED_SHARE else None


def written_prompt(question: str, instruction: str | None) -> str:
    """Returns the written question, behind the instruction where there is one."""
    return question if instruction is None else f"{instruction}\n\n{question}"


def answer_questions(
    model: nnx.Module,
    processor: Processor,
    questions: list[str],
    *,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
) -> dict[int, tuple[list[int], bool]]:
    """Answers the questions greedily in text.

    Returns by question's place its token ids, and whether the answer ended by itself. Questions with alarming
    words are not asked. Declined answers are left out, those with a disclaimer too: otherwise the bridge
    would teach to over-refuse. So are programs, which nobody would listen to.
    """
    judge = Phrases()
    prompts = [
        Prompt(key=i, row=(processor.encode(written_prompt(question, draw_instruction(i, seed))), [], []))
        for i, question in enumerate(questions)
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
