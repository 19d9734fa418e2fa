"""A model of this project as a writer of text: prompts in, answers out, through the project's own
generation."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp

from rrs_jax.data.writers import Request
from rrs_jax.distributed.mesh import make_mesh
from rrs_jax.files import content_hash
from rrs_jax.frozen.audio_bank import empty_audio_bank
from rrs_jax.generate import Generator, Prompt, SamplingConfig
from rrs_jax.inputs.processor import Processor
from rrs_jax.progress import Progress
from rrs_jax.weights.load import load_weights, resolve_folder


class LocalWriter:
    """A writer of text by the model in a folder, of a hub id, `mini`, or `small`.

    The first attempt at a prompt is greedy, later ones are sampled.

    One model may be asked in several runs: an attempt's answer depends on the prompt and the attempt alone.
    """

    def __init__(self, path: str, dtype: str = "bfloat16", max_new_tokens: int = 64):
        self.name = f"local:{path}"
        folder = resolve_folder(path)
        self.processor = Processor.from_folder(folder)
        self.module = load_weights(folder, dtype=jnp.dtype(dtype), mesh=make_mesh())
        # The first attempt's and the others'; kept, since they hold what was compiled.
        self.generators = [
            Generator(
                self.module,
                SamplingConfig.from_generation_config(
                    self.processor.generation, greedy=greedy, max_new_tokens=max_new_tokens
                ),
                eos_token_ids=self.processor.eos_token_ids,
            )
            for greedy in (True, False)
        ]

    def ask(self, requests: Sequence[Request], on_answer: Callable[[Request, str], None]) -> None:
        """Writes an answer to every request; `on_answer` is called with each as it is ready."""
        bank = empty_audio_bank(self.module)
        with Progress(len(requests), "the local model writes", unit="answers") as progress:

            def finished(request: Request, tokens: list[int]) -> None:
                on_answer(request, self.processor.decode(tokens))
                progress.update()

            for first, generator in zip((True, False), self.generators, strict=True):
                prompts = [
                    Prompt(
                        key=request, row=(self.processor.encode(request.prompt), [], []), seed=_seed(request)
                    )
                    for request in requests
                    if (request.attempt == 0) == first
                ]
                generator.generate(prompts, bank.array, finished)


def _seed(request: Request) -> int:
    return int(content_hash(request.prompt, request.attempt)[:8], 16)
