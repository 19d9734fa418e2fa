"""A person's rewrites, for questions whose rewrites by a model were not accepted."""

from pathlib import Path

from rrs_jax.data.beavertails import key_of
from rrs_jax.data.questions import clean
from rrs_jax.data.rewrite import rewrite_fault
from rrs_jax.data.selection import Pool
from rrs_jax.data.tables import read_table
from rrs_jax.data.values import numbers_as_text
from rrs_jax.errors import UserError


def read_edits(path: str | Path, pool: Pool) -> dict[str, str | None]:
    """Reads a person's rewrites by the harmful question's key; None leaves the question out.

    A row has `harmful` and `benign`; an empty `benign` is not decided yet, null leaves out. Raises UserError
    that lists every bad row.
    """
    edits, faults = {}, []
    known = {question.key for ranked in pool.harmful.values() for question in ranked}
    for number, row in read_table(path):
        row = numbers_as_text(row, "harmful", "benign")
        harmful, benign = row.get("harmful"), row.get("benign", "")
        if not isinstance(harmful, str) or not harmful.strip():
            faults.append(f"line {number}: harmful is no text")
            continue
        key = key_of(clean(harmful))
        if benign is not None and not isinstance(benign, str):
            faults.append(f"line {number}: benign is neither text nor null")
        elif benign == "":
            continue
        elif key not in known:
            faults.append(
                f"line {number}: {harmful!r} is no harmful question of the source that may be drawn"
            )
        elif benign is not None and (fault := rewrite_fault(harmful, benign)):
            faults.append(f"line {number}: {benign!r} {fault}")
        else:
            edits[key] = benign
    if faults:
        raise UserError(
            f"{path}: {len(faults)} rows to mend:\n" + "\n".join(f"  {fault}" for fault in faults)
        )
    return edits
