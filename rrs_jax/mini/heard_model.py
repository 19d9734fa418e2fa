"""A model with the clips of its questions, and the frame of the commands `measure` and `separability`."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx

from rrs_jax.config.kinds import choice, path, with_home
from rrs_jax.data.speech import speak_all
from rrs_jax.data.voices import draw_voice
from rrs_jax.errors import exit_status
from rrs_jax.files import write_json
from rrs_jax.frozen.audio_bank import AudioBank, make_audio_bank
from rrs_jax.inputs.processor import Processor
from rrs_jax.mini.model import ensure_model
from rrs_jax.weights.load import load_weights, resolve_folder

BATCH = 8


class HeardModel(NamedTuple):
    """A model, its processor, and the encoded speech of its questions; clip i of the bank is question i."""

    model: nnx.Module
    processor: Processor
    bank: AudioBank

    def prompt(self, text: str | None, clips: Sequence[int] = ()) -> tuple:
        """Returns a prompt's token ids, and the offsets and token counts of its clips."""
        offsets, counts = self.bank.clips(clips)
        return self.processor.encode(text, counts), offsets, counts


def load_heard(options: argparse.Namespace, questions: Sequence[str]) -> HeardModel:
    """Loads the model of `command_parser`'s flags and encodes the questions' speech.

    Raises UserError where the model cannot be had.
    """
    if options.bridge:
        folder = ensure_model(options.model, bridge=Path(options.bridge))
    else:
        folder = resolve_folder(options.model)
    processor = Processor.from_folder(folder)
    model = load_weights(folder, dtype=jnp.dtype(options.dtype))
    clips = speak_all([(question, draw_voice(question, 0)) for question in questions])
    return HeardModel(
        model, processor, make_audio_bank(model, processor.mel, [p for p, _ in clips], batch_size=BATCH)
    )


def command_parser(module: str, description: str) -> argparse.ArgumentParser:
    """Returns the parser of `python -m rrs_jax.mini.MODULE` with the flags that both commands have."""
    parser = argparse.ArgumentParser(prog=f"python -m rrs_jax.mini.{module}", description=description)
    model = path("mini, small, a Hugging Face folder, or a hub id OWNER/NAME")
    parser.add_argument("--model", type=model.argument, default="mini", help=model.wants)
    bridge = path("folder with the bridge of mini or small; by default the shipped one")
    parser.add_argument("--bridge", type=bridge.argument, metavar="FOLDER", help=bridge.wants)
    dtype = choice("float32", "bfloat16")
    parser.add_argument("--dtype", type=dtype.argument, default="float32", help="number type of the weights")
    parser.add_argument("--out", metavar="FILE", help="JSON file for the figures")
    return parser


def run_command(
    parser: argparse.ArgumentParser,
    figures: Callable[[argparse.Namespace], dict],
    arguments: Sequence[str] | None,
) -> int:
    """Prints the figures, and writes them where that is asked for.

    Returns the exit status: 0, or 2 after one sentence on standard error for a user's mistake.
    """
    options = parser.parse_args(with_home(arguments))
    with exit_status() as status:
        bridge = {"bridge": options.bridge} if options.bridge else {}
        found = {"model": options.model, **bridge, "dtype": options.dtype} | figures(options)
        print(json.dumps(found, indent=2))
        if options.out:
            write_json(Path(options.out), found)
    return status.code
