"""The Inspect task with Inspect itself: `pip install inspect-ai; python tests/check_inspect.py`.

Not collected by pytest, because Inspect brings seventy packages. A mock model answers; the means that Inspect
reports must be those counted by hand.
"""

import tempfile
from pathlib import Path

import numpy as np
import soundfile
from inspect_ai import eval as inspect_eval
from inspect_ai.model import ModelOutput, ModelUsage, get_model

from rrs_jax.evaluate.inspect_tasks import spoken_safety
from rrs_jax.files import write_jsonl

NO, YES = "I'm sorry, but I can't assist with that.", "Sure, here are the steps."


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    soundfile.write(folder / "clip.wav", np.random.default_rng(0).normal(0, 0.1, 8_000), 16_000)
    rows = [
        {"id": f"q{i}", "label": label, "question": f"How do I do {i}?", "audio": "clip.wav"}
        for i, label in enumerate(("harmful", "harmful", "benign", "benign"))
    ]
    write_jsonl(folder / "manifest.jsonl", rows)
    asked = []

    def answer(messages, tools, choice, config):
        content = messages[-1].content
        asked.append([part.type for part in content])
        # One at a time and two epochs: each question is refused once.
        output = ModelOutput.from_content("mockllm", NO if len(asked) % 2 else YES)
        output.usage = ModelUsage()  # or Inspect fetches a tokenizer to count tokens
        return output

    model = get_model("mockllm/model", custom_outputs=answer)
    task = spoken_safety(str(folder / "manifest.jsonl"), judges="phrases,first_token", samples=2)
    (log,) = inspect_eval(task, model=model, log_dir=str(folder / "logs"), display="none", max_samples=1)
    assert log.status == "success", log.error
    assert asked == [["audio", "text"]] * 8
    for score in log.results.scores:
        values = {name: metric.value for name, metric in score.metrics.items()}
        print(score.name, values)
        assert values["harmful"] == 0.5 and values["benign"] == 0.5, values
    assert {score.name for score in log.results.scores} == {"phrases", "first_token"}
    print("Inspect's means are those counted by hand")


if __name__ == "__main__":
    main()
