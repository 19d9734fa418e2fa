"""Summaries of evaluations, as files."""

import json


def write_summary(path, run: str, name: str, asr: tuple, orr: float, borderline: float, nsi: bool, **further):
    """A summary.json with the fields that tables read, and what `further` has."""
    block = {"ci95": [0.0, 100.0], "queries": 10, "responses": 10}
    modes = zip(("audio_text", "text_only", "audio_only"), asr, strict=True)
    summary = {
        "name": name,
        "judge": "phrases",
        "nsi": {"average": 1.0} if nsi else None,
        "modes": {mode: None if rate is None else {"asr": rate} | block for mode, rate in modes},
        "orr": {"rate": orr} | block,
        "borderline_orr": {"rate": borderline} | block,
    }
    summary |= further
    folder = path / run / "eval" / name
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary))
