"""The clips of a run's manifests, known again by their content."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from rrs_jax.files import cache_folder, content_hash, read_jsonl

MANIFESTS = ("data/manifest.jsonl", "data/eval/manifest.jsonl")

Clips = Mapping[str, Mapping[str, str]]  # digests by manifest and by the path that it has


def clip_digest(clip: Path) -> str:
    """Returns the hash of a clip's bytes, as audio banks have it among their prints."""
    return content_hash(clip.read_bytes())


def run_clips(run: Path) -> Clips:
    """Returns the digest of each clip of a run's manifests, as far as they are written."""
    return {
        name: {
            row["audio"]: clip_digest((run / name).parent / row["audio"])
            for row in read_jsonl(run / name)
            if row["audio"]
        }
        for name in MANIFESTS
        if (run / name).is_file()
    }


def users_clips_changed(run: Path, known: Clips) -> tuple[list[Path], list[Path]]:
    """Returns the user's clips that are there with another content, and those that are missing."""
    clips = dict.fromkeys((clip, digest) for clip, digest, is_made in _clips(run, known) if not is_made)
    changed, missing = [], []
    for clip, digest in clips:
        if not clip.is_file():
            missing.append(clip)
        elif clip_digest(clip) != digest:
            changed.append(clip)
    return changed, missing


def made_clips_changed(run: Path, known: Clips) -> dict[str, str]:
    """Returns what is wrong with each clip that the program made, in the run or in its cache, and which it
    can make again."""
    found = {}
    for clip, digest, is_made in _clips(run, known):
        if is_made and not clip.is_file():
            found[str(clip)] = "is missing"
        elif is_made and clip_digest(clip) != digest:
            found[str(clip)] = "is not what was made"
    return found


def _clips(run: Path, known: Clips) -> Iterator[tuple[Path, str, bool]]:
    """Yields each clip with its digest and whether the program made it."""
    homes = (run.resolve(), cache_folder().resolve())
    for name, clips in known.items():
        for audio, digest in clips.items():
            clip = (run / name).parent / audio
            yield clip, digest, any(home in clip.resolve().parents for home in homes)
