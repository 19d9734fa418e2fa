"""The peer's side of `side_by_side.py`: transformers with PEFT, on random weights made on the device.

`stock` is what a user gets without further work: the encoder in every step, adapters as PEFT makes them.
`encoder outputs kept` computes them once, as we do; `adapters in the base's dtype` is less exact and faster;
`compiled` goes through torch.compile. The best of all counts. Its steps have the squared distance alone, ours
the penalty too.

The first Qwen-Audio is no class of transformers; its peer is Qwen2-Audio's class at Qwen-Audio's sizes.
"""

import argparse
import math
from collections.abc import Callable

import peft
import torch
import transformers
from common import (
    AUDIO_FRAMES,
    AUDIO_START,
    AUDIO_TOKENS,
    GIB,
    clip_frames,
    clip_seconds,
    median_seconds,
    report,
)
from generation import theirs
from parts import each_part, failure_told

from rrs_jax.models.architectures import part

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
NO_VISION = {
    "depth": 1,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_heads": 2,
    "fullatt_block_indexes": [0],
}


def measure(values: dict, arguments: argparse.Namespace) -> None:
    name = torch.cuda.get_device_name() if CUDA else "cpu"
    version = f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}"
    report(part="device", side="peer", device=name, version=version, **rates(arguments))
    config = part("models", values).MODEL.config_class.from_hf(values)
    if set(arguments.parts) & {"step", "extract", "encoder"}:
        peer = Peer(values, config, arguments)
        each_part("peer", {"extract": peer.extract, "encoder": peer.encoder, "step": peer.step}, arguments)
        del peer
        if CUDA:
            torch.cuda.empty_cache()
    each_part("peer", {"generate": lambda arguments: theirs(config.text, arguments)}, arguments)


def wait(value: object) -> None:
    if CUDA:
        torch.cuda.synchronize()


def rates(arguments: argparse.Namespace) -> dict:
    width, elements = (8192, 2**28) if CUDA else (1536, 2**24)
    matrix = torch.randn(width, width, device=DEVICE).to(getattr(torch, arguments.dtype))
    seconds = median_seconds(lambda: matrix @ matrix, wait, arguments.rate_steps)
    vector = torch.ones(elements, device=DEVICE, dtype=torch.float32)
    copying = median_seconds(lambda: -vector, wait, 5)
    return {"flops_a_second": 2 * width**3 / seconds, "bytes_a_second": 8 * elements / copying}


def peer_class(values: dict, config) -> tuple[type, transformers.PretrainedConfig]:
    """The class of transformers, and its config with these sizes."""
    if "thinker_config" in values:
        width = config.text.hidden_size
        thinker = values["thinker_config"] | {"vision_config": NO_VISION | {"out_hidden_size": width}}
        thinker = transformers.Qwen2_5OmniThinkerConfig(**thinker)
        return transformers.Qwen2_5OmniThinkerForConditionalGeneration, thinker
    text, audio = config.text, config.audio
    text = {
        "model_type": "qwen2",
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": text.num_hidden_layers,
        "num_attention_heads": text.num_attention_heads,
        "num_key_value_heads": text.num_key_value_heads,
        "vocab_size": text.vocab_size,
    }
    audio = {
        "d_model": audio.d_model,
        "encoder_layers": audio.encoder_layers,
        "encoder_ffn_dim": audio.encoder_ffn_dim,
        "encoder_attention_heads": audio.encoder_attention_heads,
        "num_mel_bins": audio.num_mel_bins,
    }
    whole = transformers.Qwen2AudioConfig(
        audio_config=audio, text_config=text, audio_token_index=text["vocab_size"] - 1
    )
    return transformers.Qwen2AudioForConditionalGeneration, whole


def random_peer(values: dict, config, dtype: torch.dtype) -> torch.nn.Module:
    model_class, settings = peer_class(values, config)
    torch.set_default_dtype(dtype)
    with DEVICE:
        model = model_class(settings).eval()
    torch.set_default_dtype(torch.float32)
    return model


def module_of_class(model: torch.nn.Module, *endings: str) -> tuple[str, torch.nn.Module]:
    """Releases of transformers differ in where a part stands, not in its class."""
    return next(
        (name, module) for name, module in model.named_modules() if type(module).__name__.endswith(endings)
    )


class Peer:
    """`model`: one that is loaded already; else it is made of random numbers."""

    def __init__(
        self, values: dict, config, arguments: argparse.Namespace, model: torch.nn.Module | None = None
    ):
        self.config, self.arguments = config, arguments
        self.dtype = getattr(torch, arguments.dtype)
        self.model = model or random_peer(values, config, self.dtype)
        self.audio_token = self.model.config.audio_token_id
        self.decoder_name, self.decoder = module_of_class(self.model, "Qwen2Model", "ThinkerTextModel")
        _, self.tower = module_of_class(self.model, "AudioEncoder")
        self.bank = torch.randn(AUDIO_TOKENS, config.text.hidden_size, device=DEVICE, dtype=self.dtype)

    def inputs(self, batch: int, length: int) -> dict:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(
            0, min(self.config.text.vocab_size, self.audio_token), (batch, length), generator=generator
        )
        ids[:, AUDIO_START : AUDIO_START + AUDIO_TOKENS] = self.audio_token
        frames = 3000 if self.fixed_frames else AUDIO_FRAMES
        mask = torch.zeros(batch, frames, dtype=torch.long)
        mask[:, :AUDIO_FRAMES] = 1
        features = torch.randn(batch, self.config.audio.num_mel_bins, frames, generator=generator)
        return {
            "input_ids": ids.to(DEVICE),
            "attention_mask": torch.ones_like(ids).to(DEVICE),
            "input_features": features.to(DEVICE, self.dtype),
            "feature_attention_mask": mask.to(DEVICE),
        }

    @property
    def fixed_frames(self) -> bool:
        """Qwen2-Audio's encoder takes 30 seconds and nothing else."""
        return "Omni" not in type(self.tower).__name__

    def whole(self, inputs: dict) -> torch.Tensor:
        """State computed with the encoder: the last token's state after the final norm."""
        if not self.fixed_frames:
            batch, length = inputs["input_ids"].shape
            places = torch.arange(length, device=DEVICE).expand(3, batch, length)
            inputs = inputs | {"position_ids": places}
        return self.model(**inputs, output_hidden_states=True, use_cache=False).hidden_states[-1][:, -1]

    def kept(self, inputs: dict, decoder) -> torch.Tensor:
        """State computed with the encoder's outputs at hand."""
        with torch.no_grad():
            embeddings = self.decoder.get_input_embeddings()(inputs["input_ids"]).clone()
            embeddings[:, AUDIO_START : AUDIO_START + AUDIO_TOKENS] = self.bank
        return decoder(inputs_embeds=embeddings, use_cache=False).last_hidden_state[:, -1]

    def extract(self, arguments: argparse.Namespace) -> None:
        for batch, length, rank in arguments.settings:
            if rank != arguments.rank:
                continue
            inputs = self.inputs(batch, length)
            variants = {
                "stock: encoder and decoder": lambda inputs=inputs: self.whole(inputs),
                "encoder outputs kept": lambda inputs=inputs: self.kept(inputs, self.decoder),
            }
            if arguments.compile:
                compiled = torch.compile(self.decoder)
                variants["encoder outputs kept, compiled"] = lambda inputs=inputs, c=compiled: self.kept(
                    inputs, c
                )
            for variant, call in variants.items():
                with torch.no_grad():
                    self.time("extract", variant, call, batch, length)

    def encoder(self, arguments: argparse.Namespace) -> None:
        """Batches of clips of real length, as our side has them."""
        frames = sorted(clip_frames(clip_seconds(arguments.clips)), reverse=True)
        with torch.no_grad():
            seconds = median_seconds(self._every_batch(frames, arguments.batch), wait, 1)
        variant = "padded to 30 s, as the class wants" if self.fixed_frames else "real lengths"
        report(
            part="encoder",
            side="peer",
            variant=variant,
            batch=arguments.batch,
            seconds=seconds,
            units=len(frames),
            unit="clips",
        )

    def _every_batch(self, frames: list[int], batch: int) -> Callable[[], torch.Tensor]:
        """Returns what encodes clips of so many frames, `batch` at once, and returns the last output."""
        bins = self.config.audio.num_mel_bins
        if self.fixed_frames:
            count = math.ceil(len(frames) / batch)
            features = torch.randn(batch, bins, 3000, device=DEVICE, dtype=self.dtype)
            mask = torch.zeros(batch, 1, 1, 1500, device=DEVICE, dtype=self.dtype)
            mask[..., frames[0] // 2 :] = -torch.inf  # as one batch has it
            mask = mask.expand(batch, 1, 1500, 1500)

            def every_batch():
                for _ in range(count):
                    output = self.tower(features, attention_mask=mask)
                return output

        else:
            batches = [
                torch.tensor(frames[i : i + batch], device=DEVICE) for i in range(0, len(frames), batch)
            ]
            features = [
                torch.randn(bins, int(lengths.sum()), device=DEVICE, dtype=self.dtype) for lengths in batches
            ]

            def every_batch():
                for x, lengths in zip(features, batches, strict=True):
                    output = self.tower(x, feature_lens=lengths, aftercnn_lens=(lengths - 1) // 2 + 1)
                return output

        return every_batch

    def adapted(self, rank: int) -> peft.PeftModel:
        """A model with adapters on all linears of the decoder and on no other."""
        prefix = self.decoder_name + "."
        names = [name for name, _ in self.model.named_modules() if name.startswith(prefix)]
        targets = [name for name in names if name.rsplit(".", 1)[-1] in LINEARS]
        return peft.get_peft_model(
            self.model, peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets)
        )

    def step(self, arguments: argparse.Namespace) -> None:
        for rank in sorted({rank for _, _, rank in arguments.settings}):
            wrapped = self.adapted(rank)
            for batch, length, _ in (setting for setting in arguments.settings if setting[2] == rank):
                self.steps(wrapped, batch, length, rank)
            self.model = wrapped.unload()

    def steps(self, wrapped, batch: int, length: int, rank: int) -> None:
        """All variants at the first setting, the quickest of those that need no compilation at those of
        `--scaling`."""
        inputs = self.inputs(batch, length)
        adapters = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
        scaling = (batch, length, rank) != self.arguments.settings[0]
        half = self.dtype != torch.float32
        if not scaling:
            self.train(
                "stock: encoder in every step", lambda: self.whole(inputs), adapters, batch, length, rank
            )
        if not scaling or not half:
            self.train(
                "encoder outputs kept", lambda: self.kept(inputs, self.decoder), adapters, batch, length, rank
            )
        if half:
            for parameter in adapters:
                parameter.data = parameter.data.to(self.dtype)
            variant = "encoder outputs kept, adapters in the base's dtype"
            self.train(variant, lambda: self.kept(inputs, self.decoder), adapters, batch, length, rank)
        if self.arguments.compile and not scaling:
            compiled = torch.compile(self.decoder)
            variant = "encoder outputs kept, compiled" + (", adapters in the base's dtype" if half else "")
            self.train(variant, lambda: self.kept(inputs, compiled), adapters, batch, length, rank)
        for parameter in adapters:
            parameter.data = parameter.data.float()

    def train(self, variant: str, forward, adapters: list, batch: int, length: int, rank: int) -> None:
        self.time("step", variant, self.one_step(forward, adapters, batch), batch, length, rank=rank)

    def one_step(self, forward, adapters: list, batch: int):
        optimiser = torch.optim.AdamW(adapters, lr=5e-5, weight_decay=0.0, fused=CUDA)
        target = torch.zeros(batch, self.config.text.hidden_size, device=DEVICE)

        def step():
            optimiser.zero_grad(set_to_none=True)
            loss = ((forward().float() - target) ** 2).sum(-1).mean()
            loss.backward()
            optimiser.step()
            return loss

        return step

    def first_step(self) -> None:
        batch, length, rank = self.arguments.settings[0]
        adapters = [parameter for parameter in self.adapted(rank).parameters() if parameter.requires_grad]
        inputs = self.inputs(batch, length)
        self.one_step(lambda: self.kept(inputs, self.decoder), adapters, batch)()

    def time(self, name: str, variant: str, call, batch: int, length: int, **more) -> None:
        """One variant that fails, out of memory or since torch.compile does not take it, is told and the next
        one goes on."""
        line = dict(part=name, side="peer", variant=variant, batch=batch, length=length, **more)
        steps = self.arguments.steps
        if (batch, length, more.get("rank", self.arguments.rank)) != self.arguments.settings[0]:
            steps = max(1, steps // 3)
        if CUDA:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        with failure_told(**line):
            seconds = median_seconds(call, wait, steps)
            peak = round(torch.cuda.max_memory_allocated() / GIB, 2) if CUDA else None
            report(**line, seconds=seconds, units=batch, unit="samples", peak_gib=peak)
