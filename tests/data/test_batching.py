"""Plans are pure, feeds agree, evaluation predicts every token once."""

import pickle
import random
import subprocess
import sys

import numpy as np
import pytest

from tests.data.helpers import section
from transformer.data import batching
from transformer.data.batch import Batch, Layout
from transformer.data.batching import (
    FEEDS,
    SAMPLINGS,
    KeyFeed,
    evaluation_batches,
    evaluation_rows,
    make_feed,
    make_plan,
    read_windows,
)
from transformer.errors import DataError


def plan_for(sampling, num_tokens=5000, length=32, batch=8, seed=3):
    return make_plan(section(sampling=sampling, sequence_length=length), num_tokens, batch, seed)


# --- Plans ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", list(SAMPLINGS))
def test_starts_do_not_depend_on_what_was_asked_before(sampling):
    steps = [*range(120), 10_000, 10_001]
    straight = plan_for(sampling)
    expected = {step: straight.starts(step) for step in steps}
    assert expected[0].dtype == np.int32
    assert expected[0].shape == (8,)
    shuffled = plan_for(sampling)
    for step in random.Random(0).sample(steps, len(steps)):
        assert np.array_equal(shuffled.starts(step), expected[step])
    assert np.array_equal(plan_for(sampling).starts(117), expected[117])  # as a resumed run would ask


@pytest.mark.parametrize("sampling", list(SAMPLINGS))
def test_starts_agree_between_processes(sampling):
    code = (
        "import pickle, sys; from transformer.data.batching import SAMPLINGS\n"
        f"plan = SAMPLINGS.build({sampling!r}, 5000, 32, 8, 3)\n"
        "sys.stdout.buffer.write(pickle.dumps([plan.starts(s) for s in (90, 7)]))"
    )
    other = pickle.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert np.array_equal(other, [plan_for(sampling).starts(s) for s in (90, 7)])


@pytest.mark.parametrize("sampling", list(SAMPLINGS))
def test_seed_and_step_both_matter(sampling):
    plan, other = plan_for(sampling), plan_for(sampling, seed=4)
    assert not np.array_equal(plan.starts(0), plan.starts(1))
    assert not np.array_equal(plan.starts(0), other.starts(0))


@pytest.mark.parametrize("batch", [1, 7, 8])
def test_each_window_comes_once_per_epoch_with_new_cuts(batch):
    plan = plan_for("epochs", batch=batch)
    steps = -(-plan.windows * 3 // batch)
    rows = np.concatenate([plan.starts(step) for step in range(steps)])[: plan.windows * 3]
    epochs = rows.reshape(3, plan.windows)
    for starts in epochs:
        ordered = np.sort(starts)
        assert (np.diff(ordered) == 32).all()
        assert 0 <= ordered[0] < 32
        assert ordered[-1] + 33 <= 5000
        assert len(starts) * 32 > 5000 - 2 * 32 - 1  # less than two windows are left out
        assert not np.array_equal(starts, ordered)
    assert len({int(starts.min()) for starts in epochs}) > 1
    assert plan.epoch_of(0) == 0
    assert plan.epoch_of(plan.windows) == pytest.approx(batch)


def test_the_order_of_windows_does_not_depend_on_the_batch_size():
    big, small = plan_for("epochs", batch=8), plan_for("epochs", batch=4)
    assert np.array_equal(big.starts(2), np.concatenate([small.starts(4), small.starts(5)]))


@pytest.mark.parametrize("sampling", list(SAMPLINGS))
@pytest.mark.parametrize("extra", [1, 2, 31, 32, 33, 64, 65, 100])
def test_windows_stay_inside_corpora_of_any_size(sampling, extra):
    num_tokens = 32 + extra
    plan = plan_for(sampling, num_tokens=num_tokens)
    starts = np.concatenate([plan.starts(step) for step in range(60)])
    assert starts.min() >= 0
    assert starts.max() + 33 <= num_tokens
    if sampling == "replacement" and extra <= 33:
        assert set(starts) == set(range(extra))  # the last possible start included


def test_a_corpus_shorter_than_a_window_is_refused():
    with pytest.raises(DataError, match=r"data\.sequence_length=32 needs windows of 33 tokens"):
        plan_for("epochs", num_tokens=32)


@pytest.mark.parametrize("sampling", list(SAMPLINGS))
def test_corpora_beyond_32_bits(sampling):
    plan = plan_for(sampling, num_tokens=2**33, length=2**20, batch=64)
    starts = np.concatenate([plan.starts(step) for step in range(10)])
    assert starts.dtype == np.int64
    assert starts.min() >= 0
    assert 2**32 < starts.max() <= 2**33 - 2**20 - 1


# --- Feeds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", list(SAMPLINGS))
def test_device_and_grain_feeds_stand_for_the_same_batches(sampling):
    tokens = np.random.default_rng(0).integers(0, 260, 5000).astype(np.uint16)
    plan = plan_for(sampling)
    device = make_feed("device", plan, tokens)
    grain = make_feed("grain", plan_for(sampling), tokens)
    assert device.resident is tokens
    assert grain.resident is None
    # On and on, an epoch's border (step 19 and 20), a jump ahead, a jump back, the same again.
    for first, count in [(0, 5), (5, 3), (8, 1), (18, 5), (500, 2), (3, 4), (3, 4)]:
        starts = device.chunk(first, count)
        batches = grain.chunk(first, count)
        assert (starts.dtype, starts.shape) == (np.int32, (count, 8))
        assert (batches.dtype, batches.shape) == (np.int32, (count, 8, 33))
        assert np.array_equal(batches, tokens[starts[..., None] + np.arange(33)])


def test_auto_keeps_small_corpora_on_the_device(monkeypatch):
    tokens = np.zeros(5000, np.uint16)
    assert make_feed("auto", plan_for("epochs"), tokens).resident is tokens
    monkeypatch.setattr(batching, "RESIDENT_BYTES", 10_000)
    assert make_feed("auto", plan_for("epochs"), tokens).resident is None
    assert set(FEEDS) == {"auto", "device", "grain"}


def test_device_feed_refuses_what_it_cannot_index():
    tokens = np.broadcast_to(np.uint8(0), 2**31)
    with pytest.raises(DataError, match=r"use data\.feed=grain"):
        make_feed("device", plan_for("replacement", num_tokens=2**31), tokens)


# --- Evaluation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_tokens", [2, 9, 64, 65, 66, 500])
@pytest.mark.parametrize("max_tokens", [None, 1, 64, 100])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_token_but_the_first_is_predicted_exactly_once(num_tokens, max_tokens, batch):
    tokens = np.arange(1, num_tokens + 1, dtype=np.uint16)  # so that a token says where it stands
    batches = list(evaluation_batches(tokens, Layout(8), batch, max_tokens))
    predicted = min(num_tokens - 1, max_tokens or num_tokens)
    targets = []
    for found in batches:
        windows, weights = found.tokens_BL, found.weights_BL
        assert (windows.dtype, windows.shape) == (np.int32, (batch, 9))
        assert (weights.dtype, weights.shape) == (np.float32, (batch, 9))
        assert found.segments_BL is None
        assert not weights[:, 0].any()
        counted = weights[:, 1:] == 1
        assert (weights[:, 1:][~counted] == 0).all()
        assert np.array_equal(windows[:, :-1][counted] + 1, windows[:, 1:][counted])
        targets.extend(windows[:, 1:][counted].tolist())
    assert targets == list(range(2, predicted + 2))
    assert len(batches) == -(-predicted // (8 * batch))
    assert sum(float(found.weights_BL.sum()) for found in batches) == predicted


def test_the_fixed_subset_fills_whole_windows():
    tokens = np.zeros(100_000, np.uint16)
    batches = list(evaluation_batches(tokens, Layout(256), 32, max_tokens=32_768))
    assert len(batches) == 4
    assert all(found.weights_BL[:, 1:].all() for found in batches)


def test_one_token_predicts_nothing():
    assert list(evaluation_batches(np.zeros(1, np.uint8), Layout(8), 2)) == []


@pytest.mark.parametrize("num_tokens", [1, 9, 64, 65])
def test_without_overlap_every_token_is_a_target_and_padding_is_told_apart(num_tokens):
    tokens = np.arange(1, num_tokens + 1, dtype=np.uint16)
    layout = Layout(8, overlap=0, marks_padding=True)
    batches = list(evaluation_batches(tokens, layout, 3))
    targets = np.concatenate([found.tokens_BL[found.weights_BL == 1] for found in batches])
    assert targets.tolist() == tokens.tolist()
    assert all(np.array_equal(found.segments_BL, found.weights_BL) for found in batches)
    assert all(found.tokens_BL.shape == (3, 8) for found in batches)


# --- Documents in one window -------------------------------------------------------------------------------


def test_packed_windows_number_their_documents():
    tokens = np.array([5, 6, 9, 7, 9, 9, 8, 4, 5, 9, 1], np.uint8)
    layout = Layout(5, packed=True)
    batch = read_windows(layout, eos=9)(tokens, np.array([0, 4], np.int32))
    assert batch.tokens_BL.tolist() == [[5, 6, 9, 7, 9, 9], [9, 9, 8, 4, 5, 9]]
    assert batch.segments_BL.tolist() == [[1, 1, 1, 2, 2, 3], [1, 2, 3, 3, 3, 3]]
    assert read_windows(Layout(5), eos=9)(tokens, np.array([0], np.int32)).segments_BL is None
    (found,) = evaluation_batches(tokens, layout, 3, eos=9)
    assert found.segments_BL.tolist() == [[1, 1, 1, 2, 2, 3], [1, 2, 2, 2, 2, 3], [1, 0, 0, 0, 0, 0]]


# --- Rows and keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_rows", [None, 3, 7])
def test_every_row_is_evaluated_once(max_rows):
    rows = Batch(np.arange(14, dtype=np.uint8).reshape(7, 2), labels=np.arange(7))
    batches = list(evaluation_rows(rows, 4, max_rows))
    assert all(found.tokens_BL.shape == (4, 2) for found in batches)
    counted = [
        int(label) for found in batches for label, w in zip(found.labels, found.weights_BL, strict=True) if w.all()
    ]
    assert counted == list(range(max_rows or 7))
    assert sum(float(found.weights_BL.sum()) for found in batches) == 2 * (max_rows or 7)


def test_generated_batches_are_keyed_by_seed_and_step():
    rows = KeyFeed(2**32 + 5).chunk(7, 3)
    assert (rows.dtype, rows.tolist()) == (np.uint32, [[5, 7], [5, 8], [5, 9]])
