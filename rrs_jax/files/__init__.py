"""Small files: atomic writes, locks, JSON read with bounds and sums, digests.

Only the first of a run's processes writes; what the others would write is dropped.
"""

from rrs_jax.files.damaged import DAMAGE, Named, read_text, reading, reason_of
from rrs_jax.files.digests import content_hash, file_digest
from rrs_jax.files.json_files import (
    SUM,
    append_jsonl,
    read_growing_jsonl,
    read_json,
    read_jsonl,
    with_sum,
    write_json,
    write_jsonl,
)
from rrs_jax.files.json_text import (
    JSONFault,
    half_character_fault,
    has_half_character,
    json_for_html,
    parse_json,
    replace_surrogates,
)
from rrs_jax.files.writing import (
    atomic_path,
    cache_folder,
    file_lock,
    remove_unfinished,
    safe_name,
    write_atomic,
)

__all__ = [
    "DAMAGE",
    "JSONFault",
    "Named",
    "SUM",
    "append_jsonl",
    "atomic_path",
    "cache_folder",
    "content_hash",
    "file_digest",
    "file_lock",
    "half_character_fault",
    "has_half_character",
    "json_for_html",
    "parse_json",
    "read_growing_jsonl",
    "read_json",
    "read_jsonl",
    "read_text",
    "reading",
    "reason_of",
    "remove_unfinished",
    "replace_surrogates",
    "safe_name",
    "with_sum",
    "write_atomic",
    "write_json",
    "write_jsonl",
]
