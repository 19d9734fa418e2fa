"""Gives the rows of data sets their speech: a drawn voice each, another one where it fails, clips beside the
manifest.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rrs_jax.data.intelligibility import Listener, hear_all
from rrs_jax.data.speech import Budget, try_speak_all
from rrs_jax.data.speech_cache import place_clip
from rrs_jax.data.voices import Voice, draw_voice
from rrs_jax.errors import UserError
from rrs_jax.files import safe_name, write_jsonl

VOICES_TRIED = 3  # for a text, before it is given up
Clip = tuple[Path, float, Voice]


@dataclass(frozen=True)
class SpeechOptions:
    """How rows are spoken.

    Attributes:
      voices: names as for `read_voices`.
      max_cost_usd: what paid voices may cost.
      listener: a Whisper model for the check of word errors; None checks nothing.
      max_word_errors: share of wrong words above which a clip is spoken again by another voice.
      cache: folder of clips; None is the one that all runs share.
      workers: processes; None is one a core.
    """

    voices: tuple[str, ...] = ()
    max_cost_usd: float = 0.0
    listener: str | None = None
    max_word_errors: float = 0.5
    cache: str | Path | None = None
    workers: int | None = None


def speak_rows(
    out: Path, rows: dict[str, list[dict]], voices: tuple[Voice, ...], seed: int, options: SpeechOptions
) -> tuple[dict[str, Path], dict]:
    """Completes the rows of each set with `audio`, `voice` and `seconds` and writes its manifest.

    A text has one clip; a row whose `audio` names a recording keeps that one. Returns the manifests' paths,
    and counts of what was spoken. Raises UserError that lists every text that no voice could speak; all other
    clips are kept.
    """
    texts = sorted({row["question"] for members in rows.values() for row in members if not row.get("audio")})
    clips, again = _speak(texts, voices, seed, options, out / "heard.jsonl") if texts else ({}, {})
    manifests = {}
    for name, members in rows.items():
        for row in members:
            if row.get("audio"):
                clip, spoken = Path(row["audio"]), {}
            else:
                clip, seconds, voice = clips[row["question"]]
                spoken = {"voice": voice.name, "seconds": round(seconds, 3)}
            row |= {"audio": f"audio/{safe_name(row['id'])}{clip.suffix}"} | spoken
            place_clip(clip, out / name / row["audio"])
        manifests[name] = out / name / "manifest.jsonl"
        write_jsonl(manifests[name], members)
    return (
        manifests,
        {"clips": len(texts), "hours": round(sum(clip[1] for clip in clips.values()) / 3600, 3)} | again,
    )


def _speak(
    texts: list[str], voices: tuple[Voice, ...], seed: int, options: SpeechOptions, heard: Path
) -> tuple[dict[str, Clip], dict]:
    listener = Listener(options.listener) if options.listener else None
    clips: dict[str, Clip] = {}
    reasons: dict[str, list[str]] = {}
    counts: Counter = Counter()
    open_texts, budget = texts, Budget(options.max_cost_usd)
    for attempt in range(min(VOICES_TRIED, len(voices))):
        drawn = [(text, draw_voice(text, seed, voices, attempt)) for text in open_texts]
        made = try_speak_all(drawn, budget, options.cache, options.workers)
        new: dict[str, Clip] = {}
        for (text, voice), clip in zip(drawn, made, strict=True):
            if isinstance(clip, str):
                reasons.setdefault(text, []).append(clip)
                counts["clips_failed"] += 1
            else:
                new[text] = (*clip, voice)
        if listener:
            for row in hear_all(listener, [(text, clip[0]) for text, clip in new.items()], heard):
                counts["words"] += row["words"]
                counts["words_wrong"] += row["wrong"]
                if row["wrong"] > options.max_word_errors * row["words"]:
                    misheard = (
                        f"voice {new.pop(row['text'])[2].name}: {row['text']!r} is heard as {row['heard']!r}"
                    )
                    reasons.setdefault(row["text"], []).append(misheard)
                    counts["clips_misheard"] += 1
        clips |= new
        open_texts = [text for text in open_texts if text not in new]
        if not open_texts:
            return clips, dict(counts)
    listed = "\n".join(f"  {reason}" for text in open_texts for reason in reasons[text])
    raise UserError(
        f"{len(open_texts)} of {len(texts)} texts could be spoken by none of {min(VOICES_TRIED, len(voices))}"
        f" voices; give other --voices, or leave the questions out:\n{listed}"
    )
