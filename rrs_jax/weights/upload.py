"""Uploading an exported folder to the Hugging Face hub, and finding out beforehand whether it will go."""

from collections.abc import Iterable
from pathlib import Path

from rrs_jax.errors import UserError

LOG_IN = "run `hf auth login` with a token that may write, or set HF_TOKEN"


def check_upload(repositories: Iterable[str]) -> None:
    """Asks the hub who the token's owner is, and makes the repositories that are not there, private.

    Raises UserError where there is no token, or the hub refuses it or a repository.
    """
    from huggingface_hub import HfApi, get_token

    repositories, api = list(repositories), HfApi()
    if get_token() is None:
        raise UserError(
            f"export.push: {repositories[0]} needs a token of the hub and there is none; {LOG_IN}."
        )
    try:
        user = api.whoami()
    except Exception as error:  # huggingface_hub raises a dozen kinds, all of which mean: refused
        raise UserError(f"export.push: the hub refuses the token ({_reason(error)}); {LOG_IN}.") from error
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise UserError(f"export.push: the token of {user['name']} may only read; {LOG_IN}.")
    for repository in repositories:
        try:
            api.create_repo(repository, private=True, exist_ok=True)
        except Exception as error:  # as above
            raise UserError(
                f"export.push: {user['name']} may not write to {repository} ({_reason(error)}); give a name"
                " of your own, or of an organisation in which you may write."
            ) from error


def upload(folder: Path, repository: str) -> str:
    """Uploads a folder as one commit, whose address it returns. Raises UserError where that fails."""
    from huggingface_hub import HfApi

    try:
        done = HfApi().upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Upload by RRS-JAX", ignore_patterns=[".*"]
        )
    except Exception as error:  # as above
        raise UserError(
            f"export.push: {repository} could not be uploaded ({_reason(error)}); {folder} is whole, and the"
            " same command tries again."
        ) from error
    return done.commit_url


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
