"""One small question to a server before anything long begins, asked once a day."""

import contextlib
import time
from collections.abc import Callable
from datetime import UTC, datetime

from rrs_jax.errors import UserError
from rrs_jax.files import cache_folder, content_hash, write_json

VALID_SECONDS = 24 * 3600.0


def ask_once_a_day(what: object, ask: Callable[[], None]) -> None:
    """Calls `ask`, which raises where the server cannot be used, unless it has succeeded within a day.

    `what` is a JSON value that holds all that the answer depends on: the address, the model, what is asked. A
    hash of it is kept in `trials` in $RRS_JAX_CACHE, so that a resumed run does not ask again.
    """
    kept = cache_folder() / "trials" / f"{content_hash(what)}.json"
    if kept.is_file() and 0 <= time.time() - kept.stat().st_mtime < VALID_SECONDS:
        return
    ask()
    with contextlib.suppress(UserError):  # where nothing can be written it is asked again, which costs little
        write_json(kept, {"succeeded": datetime.now(UTC).isoformat(timespec="seconds")})
