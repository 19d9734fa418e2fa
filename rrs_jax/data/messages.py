"""Conversations as other programs write them: ms-swift, LLaMA-Factory, OpenAI, ShareGPT.

{"messages": [{"role": "user", "content": "<audio>How ...?"}, {"role": "assistant", "content": "..."}],
 "audios": ["clip.wav"]}
{"conversations": [{"from": "human", "value": "<audio>How ...?"}, {"from": "gpt", "value": "..."}], ...}
{"messages": [{"role": "user", "content": [{"type": "audio", "audio": "clip.wav"},
                                           {"type": "text", "text": "How ...?"}]}]}
"""

import dataclasses
import re

LISTS = ("messages", "conversations", "conversation")
USERS, ASSISTANTS = ("user", "human"), ("assistant", "gpt", "model", "bot")
OTHERS = ("system", "developer")
# ms-swift's first version wrote the clip's path between two marks.
INLINE_CLIP = re.compile(r"(?:Audio \d+:\s*)?<audio>([^<>\n]+)</audio>\s*")
MARK = re.compile(r"(?:Audio \d+:\s*)?(?:<\|?audio(?:_bos|_eos)?\|?>|<\|AUDIO\|>)\s*")
CLIP_PARTS = ("audio", "input_audio", "audio_url", "audios")  # types of parts, and the keys of their content


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Attributes:
    questions: the user's turns as text, without marks of clips.
    answers: the assistant's turns.
    clips: values that stand for clips in the user's turns.
    """

    questions: tuple[str, ...]
    answers: tuple[str, ...]
    clips: tuple[object, ...]


def conversation_of(row: dict) -> Conversation | None:
    """Reads the conversation of a row; None where it has none. Raises ValueError for one of unknown form."""
    name = next((name for name in LISTS if isinstance(row.get(name), list)), None)
    if name is None:
        return None
    questions, answers, clips = [], [], []
    for turn in row[name]:
        role, content = _turn(turn, name)
        if role in USERS:
            text, found = _content(content, name)
            questions.append(text)
            clips += found
        elif role in ASSISTANTS:
            answers.append(_content(content, name)[0])
        elif role not in OTHERS:
            raise ValueError(f"has a turn of {role!r} in {name}, which is neither user nor assistant")
    return Conversation(tuple(filter(None, questions)), tuple(filter(None, answers)), tuple(clips))


def split_marks(text: str) -> tuple[str, list[str]]:
    """Returns a text without marks of clips, and the paths that stand in such marks."""
    clips = [match.strip() for match in INLINE_CLIP.findall(text)]
    return MARK.sub("", INLINE_CLIP.sub("", text)).strip(), clips


def _turn(turn: object, name: str) -> tuple[str, object]:
    if isinstance(turn, dict):
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if isinstance(role, str):
            return role.lower(), content
    raise ValueError(f"has a turn in {name} without role and content, or from and value")


def _content(content: object, name: str) -> tuple[str, list[object]]:
    if isinstance(content, str):
        return split_marks(content)
    texts, clips = [], []
    for part in content if isinstance(content, list) else []:
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        if not isinstance(part, dict):
            raise ValueError(f"has a turn in {name} with a part that is neither text nor audio")
        found = [part[key] for key in CLIP_PARTS if part.get(key) is not None]
        clips += found[:1]
        if isinstance(text := part.get("text"), str):
            text, inline = split_marks(text)
            texts.append(text)
            clips += inline
    return "\n".join(filter(None, texts)), clips
