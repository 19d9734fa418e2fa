"""Values of fields whose meaning other packages define: settings of a question, judges."""

from rrs_jax.config.prompts import MODES

# The modes that a question has in each setting (`rrs_jax.evaluate.settings`).
SETTING_MODES = {
    "spoken": MODES,
    "silence": ("text_only",),
    "noise": ("text_only",),
    "unit_noise": ("text_only",),
    "spelled": ("audio_text",),
    "other_voices": ("audio_text", "audio_only"),
}
SETTINGS = tuple(SETTING_MODES)

# A judge's name: the part before the colon, and the one behind it (`rrs_jax.evaluate.judges`).
JUDGES = {
    "phrases": None,
    "first_token": None,
    "llm": "RUBRIC or llm:RUBRIC@MODEL",
    "own": "RUBRIC",
    "local": "RUBRIC_FILE",
    "llama_guard": "FOLDER",
    "human": "SHEET.csv",
}
JUDGES_WRITTEN = ", ".join(name if rest is None else f"{name}:{rest}" for name, rest in JUDGES.items())
