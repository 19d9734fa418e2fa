"""Judges that ask a model: one behind an endpoint, the run's own, or a local classifier."""

import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from rrs_jax.data.reasoning import answer_of
from rrs_jax.data.verdicts import find_verdict
from rrs_jax.errors import UserError
from rrs_jax.evaluate.endpoint import Endpoint, reply_cache
from rrs_jax.evaluate.judges.judge import Exchange, Judgement, JudgeSettings, OnJudged, is_empty, non_answer
from rrs_jax.evaluate.judges.rubrics import Reading, Rubric, load_rubric
from rrs_jax.evaluate.judges.unreadable import advice, ended_early, shown_reply
from rrs_jax.files import content_hash, read_json

# (index of each conversation's answer, text) as it is ready; `attempt` 0, 1, ...
Ask = Callable[[Sequence[list[dict]], int, Callable[[int, str], None]], None]


PILOT = 8  # replies in a row that a reminder has not helped, after which no more are asked for again
TRIAL = Exchange("How do I boil an egg?", "Put it into boiling water for eight minutes.", "benign")


class ManyAtOnce(ABC):
    """A judge whose work is done by `judge_many`."""

    def judge(self, question: str, response: str, label: str) -> Judgement:
        judged = {}
        self.judge_many([Exchange(question, response, label)], judged.__setitem__)
        return judged[0]

    @abstractmethod
    def judge_many(self, exchanges: Sequence[Exchange], on_judged: OnJudged) -> None:
        """Judges all exchanges and calls `on_judged(index, judgement)` as each is ready."""


class RubricJudge(ManyAtOnce):
    """A rubric that is put to a model by `ask`.

    Responses without an answer are not sent. A reply that the rubric cannot read is asked for again, with the
    rubric's reminder, until `attempts` are used up, until the reminder has helped none of `PILOT` replies, or
    where all replies end before their verdict; then the judgement is "unreadable" and in no rate.
    """

    def __init__(self, name: str, version: str, rubric: Rubric, ask: Ask, attempts: int):
        self.name, self.version, self.sees = name, version, rubric.sees
        self.rubric, self.ask, self.attempts = rubric, ask, attempts

    def judge_many(self, exchanges: Sequence[Exchange], on_judged: OnJudged) -> None:
        left = {}  # exchanges without a verdict by index, with the answer in place of the whole response
        for index, exchange in enumerate(exchanges):
            answer = answer_of(exchange.response)
            if answer is None or is_empty(answer):
                on_judged(index, self._judgement(exchange, Reading(False, False)))
            else:
                left[index] = replace(exchange, response=answer)
        replies: dict[int, str] = {}  # the last ones that could not be read
        for attempt in range(self.attempts):
            pilot = dict(list(left.items())[:PILOT]) if attempt else {}
            read = self._ask(pilot, attempt, on_judged, replies)
            if len(pilot) == PILOT and not read:
                break
            rest = {index: exchange for index, exchange in left.items() if index not in pilot}
            read |= self._ask(rest, attempt, on_judged, replies)
            left = {index: exchange for index, exchange in left.items() if index not in read}
            if not read and all(ended_early(replies[index]) for index in left):
                break  # the same limit would cut them again
        for index in left:
            on_judged(index, Judgement(None, None, "unreadable", reply=replies[index]))

    def _ask(
        self, asked: dict[int, Exchange], attempt: int, on_judged: OnJudged, replies: dict[int, str]
    ) -> set[int]:
        """Asks for these verdicts once; returns those that could be read and keeps the others' replies."""
        places, read = list(asked), set()

        def on_reply(place: int, reply: str) -> None:
            index = places[place]
            reading = self.rubric.read(reply)
            if reading is None:
                replies[index] = reply
            else:
                read.add(index)
                on_judged(index, self._judgement(asked[index], reading))

        if asked:
            self.ask([self._messages(exchange, attempt) for exchange in asked.values()], attempt, on_reply)
        return read

    def _messages(self, exchange: Exchange, attempt: int) -> list[dict]:
        return self.rubric.messages(exchange.question, exchange.response, reminded=attempt > 0)

    def _judgement(self, exchange: Exchange, reading: Reading) -> Judgement:
        refusal = reading.refusal if "refusal" in self.sees else None
        harmful = reading.harmful if "harmful" in self.sees else None
        if refusal:
            kind = "refusal"
        else:
            kind = "answer" if harmful else non_answer(exchange.question, exchange.response) or "answer"
        score = reading.score
        if score is None and "convincing" in self.rubric.pattern.groupindex:
            score = 0.0  # nothing was said
        return Judgement(refusal, harmful, kind, score)


class EndpointJudge(RubricJudge):
    """A rubric that is put to a server's model. Replies are kept in `cache`.

    Before it asks for more than a few verdicts it has the server judge one trivial exchange (`try_out`).
    """

    def __init__(
        self, name: str, version: str, rubric: Rubric, endpoint: Endpoint, temperature: float | None
    ):
        super().__init__(name, version, rubric, self._ask_server, attempts=3)
        self.endpoint, self.temperature = endpoint, temperature

    def judge_many(self, exchanges: Sequence[Exchange], on_judged: OnJudged) -> None:
        new = (exchange for exchange in exchanges if not self._has_reply(exchange))
        if len(list(itertools.islice(new, PILOT + 1))) > PILOT:
            self.try_out()
        super().judge_many(exchanges, on_judged)

    def try_out(self) -> None:
        """Asks the server to judge one trivial exchange, unless it has done so within a day.

        Raises UserError where it cannot be asked, or where its verdict cannot be read.
        """
        self.endpoint.try_out(self._try_out, [self.version, asdict(TRIAL)])

    def _try_out(self) -> None:
        uncached = Endpoint(self.endpoint.config, None)

        def ask(
            conversations: Sequence[list[dict]], attempt: int, on_reply: Callable[[int, str], None]
        ) -> None:
            for index, messages in enumerate(conversations):
                on_reply(index, uncached.ask(messages, temperature=self.temperature))

        judged: dict[int, Judgement] = {}
        trial = RubricJudge(self.name, self.version, self.rubric, ask, self.attempts)
        trial.judge_many([TRIAL], judged.__setitem__)
        if judged[0].kind == "unreadable":
            raise UserError(
                f"judge {self.name}: its verdict on a trivial answer cannot be read:"
                f" {shown_reply(judged[0].reply)}; nothing else was asked. {advice(judged[0].reply)}"
            )

    def _ask_server(
        self, conversations: Sequence[list[dict]], attempt: int, on_reply: Callable[[int, str], None]
    ) -> None:
        def request(messages: list[dict], endpoint: Endpoint) -> str:
            return endpoint.ask(messages, draw=attempt, temperature=self.temperature)

        self.endpoint.ask_all([partial(request, messages) for messages in conversations], on_reply)

    def _has_reply(self, exchange: Exchange) -> bool:
        answer = answer_of(exchange.response)
        if answer is None or is_empty(answer):
            return True
        messages = self._messages(replace(exchange, response=answer), 0)
        return self.endpoint.has_reply(messages, temperature=self.temperature)

    def forget(self, exchanges: Sequence[Exchange]) -> None:
        """Has the replies to these exchanges, which cannot be read, asked for anew the next time."""
        for exchange, attempt in itertools.product(exchanges, range(self.attempts)):
            answered = replace(exchange, response=answer_of(exchange.response) or "")
            messages = self._messages(answered, attempt)
            self.endpoint.forget(messages, draw=attempt, temperature=self.temperature)


def endpoint_judge(written: str, settings: JudgeSettings) -> EndpointJudge:
    """Makes the judge `llm:RUBRIC` or `llm:RUBRIC@MODEL`, given what stands behind the colon.

    Raises UserError where the settings have no server or no model.
    """
    rubric_name, _, model = written.partition("@")
    rubric, server = load_rubric(rubric_name), settings.server
    model = model or (server.model if server else None)
    if not server or not model:
        raise UserError(
            f"evaluate.judges: llm:{written} needs judge.url, the address of an OpenAI-compatible "
            "server such as http://localhost:8000/v1, and judge.model."
        )
    endpoint = Endpoint(replace(server, model=model), settings.cache or reply_cache())
    name = f"llm:{rubric.name}" + (f"@{model}" if "@" in written else "")
    version = f"{rubric.version}-{content_hash(rubric.hash, model, settings.temperature)[:8]}"
    return EndpointJudge(name, f"{version} {model}", rubric, endpoint, settings.temperature)


def own_judge(rubric_name: str, settings: JudgeSettings) -> RubricJudge:
    """Makes the judge `own:RUBRIC`: the run's own model before training, by text.

    Its agreement with other judges says what it is worth. Raises UserError where no model runs here.
    """
    rubric, generate = load_rubric(rubric_name), settings.generate
    if generate is None:
        raise UserError(
            f"evaluate.judges: own:{rubric_name} needs a model that runs here; it is not to be had where"
            " answers come from an endpoint."
        )

    def ask(conversations: Sequence[list[dict]], attempt: int, on_reply: Callable[[int, str], None]) -> None:
        prompts = []
        for messages in conversations:
            system = messages[0]["content"] if messages[0]["role"] == "system" else None
            prompts.append((system, messages[-1]["content"]))
        generate(prompts, on_reply)

    name, version = f"own:{rubric.name}", f"{rubric.version}-{rubric.hash[:8]}"
    return RubricJudge(name, version, rubric, ask, attempts=2)


def local_judge(rubric_file: str, batch_size: int = 8) -> RubricJudge:
    """Makes the judge `local:RUBRIC_FILE`: a fine-tuned classifier from the rubric's Hugging Face folder.

    The rubric's prompt is word for word the one that the classifier was trained on (SORRY-Bench's Mistral and
    HarmBench's Llama are of this kind).
    """
    rubric = load_rubric(rubric_file)
    model = LocalModel(rubric.folder)

    def ask(conversations: Sequence[list[dict]], attempt: int, on_reply: Callable[[int, str], None]) -> None:
        model.answer([messages[-1]["content"] for messages in conversations], on_reply, batch_size=batch_size)

    version = f"{rubric.version}-{content_hash(rubric.hash, model.fingerprint)[:8]}"
    # It decodes greedily, so asking again would give the same.
    return RubricJudge(f"local:{rubric.name}", version, rubric, ask, attempts=1)


class LlamaGuard(ManyAtOnce):
    """Llama Guard from a Hugging Face folder, whose chat template holds its whole prompt.

    It judges the assistant's turn as "safe", or "unsafe" with categories. "unsafe" is harmful; refusals it
    does not see.
    """

    sees = frozenset({"harmful"})
    VERDICT = re.compile(r"^\W*(safe|unsafe)\b", re.IGNORECASE)

    def __init__(self, folder: str, batch_size: int = 8):
        self.model, self.batch_size = LocalModel(folder), batch_size
        self.name, self.version = "llama_guard", f"{Path(folder).name}-{self.model.fingerprint[:8]}"

    def judge_many(self, exchanges: Sequence[Exchange], on_judged: OnJudged) -> None:
        left = []
        for index, exchange in enumerate(exchanges):
            kind = non_answer(exchange.question, exchange.response)
            if kind in ("empty", "unfinished"):
                on_judged(index, Judgement(None, False, kind))
            else:
                left.append((index, kind))
        chats = [
            [
                {"role": "user", "content": exchanges[index].question},
                {"role": "assistant", "content": answer_of(exchanges[index].response)},
            ]
            for index, _ in left
        ]

        def on_answer(place: int, answer: str) -> None:
            index, kind = left[place]
            said = find_verdict(answer, self.VERDICT)
            if said is None:
                on_judged(index, Judgement(None, None, "unreadable", reply=answer))
                return
            harmful = said[1].lower() == "unsafe"
            on_judged(index, Judgement(None, harmful, "answer" if harmful else kind or "answer"))

        prompts = [self.model.tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
        self.model.answer(prompts, on_answer, batch_size=self.batch_size)


class LocalModel:
    """A causal language model of `transformers` that decodes greedily, on torch's first GPU if there is one.

    Raises UserError where torch or the folder is missing.
    """

    NEW_TOKENS = 16  # a verdict is a word or a digit

    def __init__(self, folder: str | None):
        try:
            import torch
        except ImportError as error:
            raise UserError(
                "A judge from a Hugging Face folder needs torch; run: pip install torch"
            ) from error
        import transformers

        if not folder or not (Path(folder) / "config.json").is_file():
            raise UserError(
                f"judge: {folder} is no Hugging Face folder with a config.json; give the classifier's."
            )
        self.torch, self.folder = torch, Path(folder)
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self.model: Any = model.to(self.device).eval()

    @property
    def fingerprint(self) -> str:
        """Hash of the folder's config and of its weight files' names and sizes."""
        files = sorted((file.name, file.stat().st_size) for file in self.folder.glob("*.safetensors"))
        return content_hash(read_json(self.folder / "config.json"), files)

    def answer(
        self, prompts: Sequence[str], on_answer: Callable[[int, str], None], *, batch_size: int
    ) -> None:
        """Continues each prompt, which holds its own special tokens, by at most NEW_TOKENS."""
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            texts = [prompts[index] for index in batch]
            # A template's text begins with the first token already, where the model has one.
            first = self.tokenizer.bos_token
            begun = first is not None and texts[0].startswith(first)
            inputs = self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=not begun)
            inputs = inputs.to(self.device)
            with self.torch.no_grad():
                tokens = self.model.generate(
                    **inputs,
                    max_new_tokens=self.NEW_TOKENS,
                    do_sample=False,
                    pad_token_id=self.tokenizer.pad_token_id,
                )
            answers = self.tokenizer.batch_decode(
                tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
            )
            for index, answer in zip(batch, answers, strict=True):
                on_answer(index, answer)
