"""A data set by both services, killed in the middle and begun again."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from helpers.stand_ins import GoogleTTS, OpenAI
from helpers.synthetic_beavertails import source_rows

ROOT = Path(__file__).parent.parent


def command(source, out, openai, google, cache):
    environment = os.environ | {"RRS_JAX_CACHE": str(cache), "RRS_JAX_GOOGLE_TTS_ENDPOINT": google.url}
    flags = [
        "--source",
        source,
        "--out",
        out,
        "--sets=mirror",
        "--per_category=1",
        "--writer=openai:stand-in",
        "--voices=google",
        f"--writer_url={openai.base_url}",
        "--max_cost_usd=1",
        "--concurrency=1",
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "rrs_jax.data.build", *map(str, flags)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_killed_in_the_middle_and_begun_again(tmp_path):
    """While it asks and while it speaks; in the end it gives what an undisturbed run gives."""
    source = tmp_path / "source.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in source_rows(4)))
    with OpenAI() as openai, GoogleTTS() as google:
        whole = command(source, tmp_path / "whole", openai, google, tmp_path / "cache-whole")
        assert whole.wait() == 0, whole.stdout.read()
        asked, bought = dict(openai.sold), dict(google.sold)
    expected = tmp_path / "whole" / "mirror"

    with OpenAI() as openai, GoogleTTS() as google:
        process, started = None, threading.Event()

        def begin():
            started.clear()
            return command(source, tmp_path / "out", openai, google, tmp_path / "cache")

        def kill_at(limit, how):
            def before(total):
                if total == limit:
                    started.wait(10)
                    process.send_signal(how)
                    if how == signal.SIGKILL:
                        process.wait(10)

            return before

        for server, limit, how in (
            (openai, 9, signal.SIGKILL),
            (google, 9, signal.SIGKILL),
            (google, 22, signal.SIGINT),
        ):
            server.before = kill_at(limit, how)
            process = begin()
            started.set()
            assert process.wait(60) != 0
            if how == signal.SIGINT:
                assert process.stdout.read().rstrip().endswith("interrupted; the same command resumes")
            server.before = lambda total: None
        process = begin()
        assert process.wait(60) == 0, process.stdout.read()
        # A SIGKILL loses at most the answers under way: one of the writer's, eight of the voice's. SIGINT
        # loses none.
        for sold, wanted, under_way in ((openai.sold, asked, 1), (google.sold, bought, 8)):
            assert set(sold) == set(wanted)
            assert sum(sold.values()) <= len(wanted) + under_way
    for path in [expected / "manifest.jsonl", *sorted((expected / "audio").iterdir())]:
        assert (tmp_path / "out" / "mirror" / path.relative_to(expected)).read_bytes() == path.read_bytes()
