"""A source in BeaverTails' exact schema, with mild questions and no answers worth the name.

python tests/helpers/synthetic_beavertails.py SOURCE.jsonl 60
"""

import json
import random
import sys

CATEGORIES = {  # a harmful verb, the verb that makes the question harmless, and whom it concerns
    "animal_abuse": ("scare", "feed", "my cats"),
    "child_abuse": ("frighten", "comfort", "a child"),
    "controversial_topics,politics": ("smear", "meet", "the mayor"),
    "discrimination,stereotype,injustice": ("mock", "welcome", "foreigners"),
    "drug_abuse,weapons,banned_substance": ("smuggle", "refuse", "pills"),
    "financial_crime,property_crime,theft": ("steal", "buy", "bicycles"),
    "hate_speech,offensive_language": ("insult", "greet", "immigrants"),
    "misinformation_regarding_ethics,laws_and_safety": ("fake", "check", "the news"),
    "non_violent_unethical_behavior": ("trick", "thank", "my coworkers"),
    "privacy_violation": ("stalk", "visit", "my neighbors"),
    "self_harm": ("starve", "nourish", "myself"),
    "sexually_explicit,adult_content": ("ogle", "ignore", "strangers"),
    "terrorism,organized_crime": ("threaten", "protect", "the stadium"),
    "violence,aiding_and_abetting,incitement": ("punch", "help", "my rival"),
}
BENIGN = {harmful: benign for harmful, benign, _ in CATEGORIES.values()}
THINGS = (
    "camera ladder broom kettle banana candle blanket hammer pencil trumpet basket mirror umbrella carrot"
    " lantern ribbon bucket whistle pillow magnet feather scarf bottle spoon guitar wagon helmet curtain"
    " needle shovel"
).split()
PLACES = (
    "library market harbor garden airport bakery museum station castle stadium bridge theater village factory"
    " school forest beach office kitchen valley tunnel island temple hotel palace farm mountain cinema clinic"
    " tower"
).split()
WAYS = (
    "quietly quickly slowly secretly openly often twice daily early late alone cheaply gently boldly calmly"
).split()
ADJECTIVES = (
    "cold bright heavy famous noisy empty green expensive narrow quiet crooked rusty modern ancient tiny"
).split()


def harmful_question(category: str, rng: random.Random) -> str:
    verb, _, whom = CATEGORIES[category]
    return (
        f"How do I {verb} {whom} with a {rng.choice(THINGS)} at the {rng.choice(PLACES)} {rng.choice(WAYS)}?"
    )


def benign_question(rng: random.Random) -> str:
    return (
        f"Why is the {rng.choice(ADJECTIVES)} {rng.choice(THINGS)} from the {rng.choice(PLACES)} so "
        f"{rng.choice(ADJECTIVES)} and {rng.choice(WAYS)} used?"
    )


def row(prompt: str, response: str, is_safe: bool, *categories: str) -> dict:
    return {
        "prompt": prompt,
        "response": response,
        "category": {name: name in categories for name in CATEGORIES},
        "is_safe": is_safe,
    }


def harmful_rows(prompt: str, *categories: str) -> list[dict]:
    """Two unsafe answers of three; the last one was labelled by three annotators, one of whom disagrees."""
    return [
        row(prompt, "An unsafe answer.", False, *categories),
        row(prompt, "Another unsafe answer.", False, *categories),
        row(prompt, "I will not help with that.", True),
        row(prompt, "I will not help with that.", True),
        row(prompt, "I will not help with that.", False, *categories),
    ]


def benign_rows(prompt: str) -> list[dict]:
    return [row(prompt, f"A good answer about it. {prompt}", True), row(prompt, "Another good answer.", True)]


def lines(rows: list[dict]) -> str:
    """Returns the rows as JSON lines."""
    return "".join(json.dumps(item) + "\n" for item in rows)


def source_rows(each: int, seed: int = 0) -> list[dict]:
    """`each` harmful questions a category (some nearly equal by chance) and twice as many benign ones in
    all."""
    rng = random.Random(seed)
    rows = []
    for category in CATEGORIES:
        for _ in range(each):
            rows += harmful_rows(harmful_question(category, rng), category)
    for _ in range(2 * each * len(CATEGORIES)):
        rows += benign_rows(benign_question(rng))
    rng.shuffle(rows)
    return rows


if __name__ == "__main__":
    with open(sys.argv[1], "w") as file:
        file.write(lines(source_rows(int(sys.argv[2]))))
