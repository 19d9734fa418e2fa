"""The tests' environment, and the fixtures that several test files share."""

import atexit
import os
import shutil
import signal
import tempfile

from helpers.xla_flags import UNOPTIMISED

# Eight devices on the CPU, and no optimisation: the tests' time is compilation. For the same reason all
# tests, and the processes that they start, share what is compiled; pytest's first process makes the folder
# and its workers find it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled = tempfile.mkdtemp(prefix="rrs-jax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 {UNOPTIMISED}"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest
import torch
from selenium import webdriver

from helpers.clip_prompts import clip_features
from helpers.qwen2_audio import make_reference
from rrs_jax.testing import write_clips, write_qwen2_audio

torch.set_num_threads(1)

# A shell has what it starts in the background ignore Ctrl-C, and the processes that tests start and interrupt
# with it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def reference():
    """An untied torch model in float32."""
    return make_reference()


@pytest.fixture(scope="session")
def folder(reference, tmp_path_factory):
    """Its folder, in two shards."""
    path = tmp_path_factory.mktemp("model")
    reference.save_pretrained(path, max_shard_size="60KB")
    return path


@pytest.fixture(scope="module")
def clips():
    """Features of four clips."""
    return clip_features()


@pytest.fixture(scope="session")
def whole_folder(tmp_path_factory):
    """A whole model folder as a user has it; no test changes it."""
    path = tmp_path_factory.mktemp("whole")
    write_qwen2_audio(path)
    return path


@pytest.fixture(scope="session")
def sound_files(tmp_path_factory):
    """Eight clips as WAV files; no test changes them."""
    return write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not program or not driver:
        pytest.fail(
            "the page's tests need Chromium; run: apt-get install -y chromium chromium-driver", pytrace=False
        )
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--autoplay-policy=no-user-gesture-required",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()
