"""The curve of a bridge: what is held out, how states are compared, and how a stopped run goes on."""

import json
import time
from types import SimpleNamespace

import bridge_curve
import numpy as np
import pytest
from bridge_curve import Apart, EveryQuestion, HostWork, Row, hold_out
from bridge_figures import compare

from rrs_jax.errors import UserError
from rrs_jax.files import write_jsonl
from rrs_jax.inputs.processor import Processor
from rrs_jax.mini import train_bridge
from rrs_jax.mini.bridge_data import load_clips, save_clips, speech_features
from rrs_jax.mini.bridge_examples import Examples

NOUNS = ("bread", "soup", "tea", "rice", "cake", "jam", "salad", "pasta", "pizza", "juice")
PAIRS = [(f"How do I make {noun} at home?", f"How do I sell {noun} at home?") for noun in NOUNS]
ALONE = ("Why did the murderer run away?", "How did the thief escape the jail?")  # read, but not answered
LISTS = ("Velvet, torch, lemon.", "Barn, saxophone, shelter.")
HELD = 3


def data_row(processor, text: str, pair: int | None, answered: bool = True) -> dict:
    answer = processor.text_ids(text.lower()) if answered and pair is not None else None
    return {"text": text, "pair": pair, "prompt": None, "answer": answer, "ended": answer is not None}


@pytest.fixture(scope="module")
def processor(whole_folder):
    return Processor.from_folder(whole_folder)


@pytest.fixture(scope="module")
def rows(processor):
    """Ten pairs, of which the last one's copy has no answer, two questions without an answer, two lists."""
    pairs = [data_row(processor, text, i) for i, both in enumerate(PAIRS) for text in both]
    pairs[-1] = data_row(processor, PAIRS[-1][1], len(PAIRS) - 1, answered=False)
    alone = [data_row(processor, text, 50 + i, answered=False) for i, text in enumerate(ALONE)]
    return pairs + alone + [data_row(processor, text, None) for text in LISTS]


@pytest.fixture(scope="module")
def work(rows, processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    write_jsonl(folder / "data.jsonl", rows)
    clips = [speech_features(row["text"], processor.mel, 0) for row in rows]
    save_clips(clips, folder / "features.safetensors")
    return folder


def texts_in(processor, batch, *, repeat: bool) -> list[str]:
    """The texts of a batch: what is repeated, or what is read up to the answer."""
    if repeat:
        ends = batch.answer_mask.sum(1).astype(int)
        return [
            processor.decode(ids[: end - 1].tolist()) for ids, end in zip(batch.answer, ends, strict=True)
        ]
    rows = zip(batch.written.input_ids, batch.written_start, strict=True)
    return [processor.decode(ids[:start].tolist()) for ids, start in rows]


@pytest.mark.parametrize("kind", [Examples, Apart, EveryQuestion])
@pytest.mark.parametrize("repeat", [True, False])
def test_held_out_pairs_are_in_no_batch_and_all_others_are(kind, repeat, rows, work, processor):
    kept, held = hold_out(rows, HELD)
    clips = load_clips(work)
    examples = kind(processor, [rows[i] for i in kept], [clips[i] for i in kept], 2)
    batches = examples.batches(np.random.default_rng(0), repeat=repeat)
    seen = " ".join(text for _ in range(60) for text in texts_in(processor, next(batches), repeat=repeat))
    assert len(held) == HELD and set(held) < set(PAIRS)
    assert not any(text in seen for pair in held for text in pair)
    asked = [row for row in rows if row["text"] not in {text for pair in held for text in pair}]
    if not repeat:
        asked = [row for row in asked if row["pair"] is not None and (row["answer"] or kind is EveryQuestion)]
        if kind is not EveryQuestion and (PAIRS[-1] not in held):
            asked = [row for row in asked if row["text"] != PAIRS[-1][0]]  # left over alone
    assert asked and all(row["text"] in seen for row in asked)


@pytest.mark.parametrize("repeat", [True, False])
def test_all_prompts_begin_alike_up_to_the_clip_or_the_question(repeat, rows, work, processor):
    examples = Examples(processor, rows, load_clips(work), 4)
    batch = next(examples.batches(np.random.default_rng(0), repeat=repeat))
    spoken, written = batch.prefixes
    assert (spoken, written) == examples.prefixes and spoken > written > 5
    assert (batch.spoken.input_ids[:, spoken] == processor.audio_token_id).all()
    assert (batch.spoken.input_ids[:, :spoken] == batch.spoken.input_ids[0, :spoken]).all()
    assert (batch.written.input_ids[:, :written] == batch.spoken.input_ids[0, :written]).all()
    question = processor.text_ids(PAIRS[0][0])  # nothing of a question, all of which may begin alike
    assert question[0] in batch.written.input_ids[:, written] or repeat


def test_what_is_held_out_does_not_change_with_other_pairs(rows):
    """The same pairs are held out whichever of the others there are."""
    held = hold_out(rows, HELD)[1]
    texts = {text for pair in held for text in pair}
    fewer = [row for row in rows if row["text"] in texts or row["pair"] in range(0, 10, 2)]
    assert hold_out(fewer, HELD)[1] == held
    kept, _ = hold_out(rows, HELD)
    assert len(kept) == len(rows) - 2 * HELD
    with pytest.raises(UserError, match="--held_out: 10 questions have a copy"):
        hold_out(rows, 10)


def test_states_are_compared_as_written_out():
    rng = np.random.default_rng(0)
    places, count, width = 2, 12, 5
    read = rng.normal(2.0, 3.0, (places, count, width)).astype(np.float32)
    heard = (read + rng.normal(0.3, 3.0, read.shape)).astype(np.float32)
    found = compare(heard, read)
    for place in range(places):
        h, r = heard[place].astype(np.float64), read[place].astype(np.float64)
        centre, spread = r.mean(0), r.std(0)

        def near(one, other, centre=centre, spread=spread):
            one, other = (one - centre) / spread, (other - centre) / spread
            return one @ other / np.linalg.norm(one) / np.linalg.norm(other)

        twins = [i + 1 if i % 2 == 0 else i - 1 for i in range(count)]
        told = np.mean([near(h[i], r[i]) > near(h[i], r[twins[i]]) for i in range(count)])
        first = np.mean([max(range(count), key=lambda j: near(h[i], r[j])) == i for i in range(count)])
        h, r = h / spread, r / spread
        along = sum((h[i] - h[i + 1]) @ (r[i] - r[i + 1]) for i in range(0, count, 2))
        squares = sum((r[i] - r[i + 1]) @ (r[i] - r[i + 1]) for i in range(0, count, 2))
        drawn = [np.sum((r[i] - r[j]) ** 2) for i in range(count) for j in range(count)]
        assert 0 < told < 1 and first < told
        assert found["told"][place] == pytest.approx(100 * told, abs=1e-3)
        assert found["told_of_all"][place] == pytest.approx(100 * first, abs=1e-3)
        assert found["kept"][place] == pytest.approx(along / squares, abs=2e-3)
        assert found["apart"][place] == pytest.approx(squares / (count / 2) / np.mean(drawn), abs=2e-3)
    same = compare(read, read)
    assert same["told"] == same["told_of_all"] == [100.0] * places and same["kept"] == [1.0] * places


def test_a_stopped_run_makes_what_is_missing_and_nothing_else(
    whole_folder, work, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(train_bridge, "ensure_base", lambda name: whole_folder)
    monkeypatch.setattr(bridge_curve, "CURVE_STEPS", (1, 2))
    monkeypatch.setattr(train_bridge, "SAVE_EVERY", 1)
    monkeypatch.setenv("RRS_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bridge_curve, "enable_compilation_cache", lambda: None)  # the tests' own is on
    out = tmp_path / "lines.jsonl"

    def curve(*more: str) -> int:
        return bridge_curve.main(
            [
                f"--work={work}", f"--out={out}", "--dtype=float32", "--steps=2", "--row_steps=2",
                "--batch_size=4", f"--held_out={HELD}", "--pairs_per_category=1", "--questions=3",
                "--rows_at_once=8", "--rate=10", *more,
            ]
        )  # fmt: skip

    rows = "--rows=read,curve,every_question"
    assert curve(rows) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["row"], line["step"]) for line in lines] == [
        ("read", 0), ("curve", 1), ("curve", 2), ("every_question", 2),
    ]  # fmt: skip
    for line in lines[1:]:
        assert {"probe", "probe_transcript", "words_wrong", "refused"} <= line.keys()
        assert len(line["twins"]["told"]) == len(line["copies"]["kept"]) == len(line["layers"])
    assert lines[1]["twins"] != lines[2]["twins"]  # each of its own step
    shown = [[cell.strip() for cell in row.split("|")[1:-1]] for row in capsys.readouterr().out.splitlines()]
    shown = shown[[row[:1] for row in shown].index(["row"]) :]
    assert [row[:2] for row in shown[2:]] == [[f"`{line['row']}`", str(line["step"])] for line in lines]
    for line, cells in zip(lines[1:], shown[3:], strict=True):
        named = dict(zip(shown[0][:8], cells[:8], strict=True))
        assert named["words wrong"] == str(line["words_wrong"]["percent"])
        assert named["probe"] == str(line["probe"]["right"])
        assert named["twins told"] == str(round(line["twins"]["told"][0], 1))
        assert cells[11:] == [str(share) for share in line["refused"].values()]
    assert shown[2][2] == "" and len({len(row) for row in shown}) == 1

    monkeypatch.setattr(bridge_curve, "prepare", None)  # nothing is loaded where nothing is missing
    assert curve(rows) == 0 and len(out.read_text().splitlines()) == 4
    monkeypatch.setattr(bridge_curve, "prepare", train_bridge.prepare)

    out.write_text("".join(f"{json.dumps(line)}\n" for line in lines[:2] + lines[3:]))
    made = []
    monkeypatch.setattr(train_bridge, "make_step", lambda *_: made.append)  # a step would be one of these
    assert curve(rows) == 0
    last = json.loads(out.read_text().splitlines()[-1])
    assert (last["row"], last["step"], last["began_at_step"]) == ("curve", 2, 2) and not made
    # The bridge is kept in 16 bit.
    np.testing.assert_allclose(last["twins"]["kept"], lines[2]["twins"]["kept"], atol=0.02)


def test_a_row_whose_loss_is_not_finite_is_told_and_the_next_one_trained(rows, tmp_path, monkeypatch, capsys):
    material = train_bridge.Material(None, None, [], rows, [None] * len(rows))
    monkeypatch.setattr(bridge_curve, "prepare", lambda asked: material)
    monkeypatch.setattr(bridge_curve, "enable_compilation_cache", lambda: None)
    figures = SimpleNamespace(hear=lambda state: {}, of_hearing=lambda: {"probe": {"right": 50.0}})
    monkeypatch.setattr(bridge_curve, "Figures", lambda *_: figures)
    for name in ("no_contrast", "no_distance"):
        monkeypatch.setitem(bridge_curve.ROWS, name, Row(examples=lambda *_: None))

    def train(bridge, examples, table, options, on_step):
        if "no_contrast" in options.work:
            raise FloatingPointError("the bridge's loss is not finite")
        on_step(0, None)
        on_step(options.steps, None)

    monkeypatch.setattr(bridge_curve, "train", train)
    out = tmp_path / "lines.jsonl"
    flags = [f"--work={tmp_path}", f"--out={out}", "--rows=no_contrast,no_distance", f"--held_out={HELD}"]
    assert bridge_curve.main(flags) == 2
    assert "no_contrast: not trained, the loss was not finite" in capsys.readouterr().err
    (line,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert (line["row"], line["step"], line["probe"]) == ("no_distance", 600, {"right": 50.0})


def test_what_fails_on_the_host_ends_the_run_at_the_next_piece():
    with pytest.raises(ZeroDivisionError), HostWork() as host:
        host.submit(lambda: 1 / 0)
        for _ in range(500):
            host.submit(time.sleep, 0.01)
    assert len(host.pieces) < 100
    with pytest.raises(ZeroDivisionError), HostWork() as host:
        host.submit(lambda: 1 / 0)
