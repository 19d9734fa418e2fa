"""Pictures of clips: the features are those of transformers' extractor, the PNG says what it is given."""

import base64

import numpy as np
import pytest
import soundfile
import transformers

from rrs_jax.data.spectrogram import Clip, log_mel, picture

RATE = 16_000


def sweep(seconds: float) -> np.ndarray:
    """A tone that rises from 200 to 7,000 Hz, in a little noise."""
    time = np.arange(round(seconds * RATE)) / RATE
    hertz = 200 + (7_000 - 200) * time / seconds
    noise = np.random.default_rng(0).normal(0, 1e-3, len(time))
    return (0.5 * np.sin(2 * np.pi * np.cumsum(hertz) / RATE) + noise).astype(np.float32)


@pytest.mark.parametrize("seconds", [0.25, 1.0, 2.0077, 29.99])
def test_features_are_those_of_transformers(seconds):
    clip = sweep(seconds)
    extractor = transformers.WhisperFeatureExtractor(feature_size=128)
    theirs = extractor(clip, sampling_rate=RATE, return_tensors="np")["input_features"][0]
    ours = log_mel(clip)
    assert ours.shape == (128, -(-len(clip) // 160)) and ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs[:, : ours.shape[1]], atol=1e-3)


def pixels_of(browser, png: bytes) -> np.ndarray:
    """Brightness (rows, columns) that a browser gives to the PNG."""
    found = browser.execute_async_script(
        """
        const done = arguments[1], image = new Image();
        image.onerror = () => done("no picture");
        image.onload = () => {
          const canvas = document.createElement("canvas"), drawn = canvas.getContext("2d");
          [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
          drawn.drawImage(image, 0, 0);
          const data = drawn.getImageData(0, 0, canvas.width, canvas.height).data;
          done([canvas.width, canvas.height, Array.from(data)]);
        };
        image.src = "data:image/png;base64," + arguments[0];""",
        base64.b64encode(png).decode(),
    )
    assert found != "no picture"
    width, height, values = found
    return np.reshape(values, (height, width, 4))[:, :, :3].sum(axis=2)


@pytest.mark.parametrize("seconds, width", [(3.0, 120), (0.51, 51)])
def test_a_browser_sees_the_tone_rise(browser, seconds, width):
    png = picture(log_mel(sweep(seconds)))
    assert len(png) < 6_000
    pixels = pixels_of(browser, png)
    assert pixels.shape == (64, width)
    highest = 64 - 1 - pixels.argmax(axis=0)  # the lightest pixel of each column, from below
    assert highest[2] < 20 and highest[-3] > 55
    assert np.mean(np.diff(highest) >= 0) > 0.95 and np.corrcoef(highest, np.arange(width))[0, 1] > 0.9


def test_a_notebook_hears_and_sees_a_clip(browser, tmp_path):
    soundfile.write(tmp_path / "a.flac", sweep(1.5), RATE)
    page = tmp_path / "page.html"
    page.write_text(Clip(tmp_path / "a.flac")._repr_html_())
    browser.get(page.as_uri())
    image, player = (browser.find_element("tag name", name) for name in ("img", "audio"))
    assert (image.get_property("naturalWidth"), image.get_property("naturalHeight")) == (120, 64)
    heard = "const [player, done] = arguments; player.onerror = () => done('error');"
    heard += "player.ondurationchange = () => done(player.duration); player.load();"
    assert browser.execute_async_script(heard, player) == pytest.approx(1.5, abs=0.01)
