"""Generation says what full passes would say: for prompts of any lengths, with every way to stop."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

from tests.inference.texts import by_full_passes, ragged, wild
from tests.tiny import LENGTH, VOCAB, tiny, tokens
from transformer.errors import UserError
from transformer.inference import generate as generate_module
from transformer.inference.generate import generate
from transformer.inference.sampling import Beam, Greedy, Sample
from transformer.inference.token_loop import extend
from transformer.model import build
from transformer.model.cache import Layout, SinkWindow, Sliding

SAMPLERS = {
    "greedy": Greedy(),
    "sample": Sample(1.3),
    "cut": Sample(1.3, top_k=6, top_p=0.9, min_p=0.02),
    "beam": Beam(3),
}
CACHES = {"full": None, "sliding": Sliding(6), "sink_window": SinkWindow(6, 2)}


@pytest.fixture(scope="module")
def model():
    return build(wild())


# --- The right tokens --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", ["rope", "learned", "none"])
def test_greedy_is_the_argmax_of_full_passes(position):
    model = build(wild({"model.position.kind": position}))
    prompt = tokens(batch=3, length=5)
    out = generate(model, prompt, 11)
    np.testing.assert_array_equal(out.new_BN, by_full_passes(model, prompt, 11))
    assert out.new_BN.dtype == np.int32 and (out.new_length_B == 11).all()
    assert len(np.unique(out.new_BN)) > 3
    np.testing.assert_array_equal(out.rows[1], [*prompt[1], *out.new_BN[1]])


@pytest.mark.parametrize("cache", CACHES.values(), ids=CACHES)
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_every_row_of_a_ragged_batch_is_its_own_run(model, sampler, cache):
    """Prompts of 1 to 9 tokens, limits and seeds of their own, some rows stopped early."""
    settings = {"sampler": sampler, "cache": cache, "stop_tokens": [7]}
    limits, seeds = [9, 14, 3, 12], [5, 6, 7, 8]
    together = generate(model, ragged(), limits, seed=seeds, **settings)
    for row, (prompt, limit, seed) in enumerate(zip(ragged(), limits, seeds, strict=True)):
        alone = generate(model, [prompt], limit, seed=[seed], **settings)
        np.testing.assert_array_equal(together.new[row], alone.new[0])
        if together.score_B is not None:
            assert together.score_B[row] == pytest.approx(alone.score_B[0], rel=1e-4)
    assert together.new_length_B[2] <= 3 and len({tuple(new[:3]) for new in together.new}) > 1


def test_a_wrong_length_would_be_noticed(model, monkeypatch):
    def everything_real(rows):
        return [np.pad(row, (0, 9 - len(row))) for row in map(np.asarray, rows)]

    right = generate(model, ragged(), 8)
    monkeypatch.setattr(generate_module, "_rows", everything_real)
    assert (generate(model, ragged(), 8).new_BN != right.new_BN).any()


# --- Stopping ----------------------------------------------------------------------------------------------------


def test_a_row_ends_with_its_stop_token(model):
    free = generate(model, ragged(), 14)
    stop = next(token for token in range(VOCAB) if 0 < sum(token in row for row in free.new) < 4)
    stopped = generate(model, ragged(), 14, stop_tokens=[stop, VOCAB + 5])
    for before, after in zip(free.new, stopped.new, strict=True):
        at = list(before).index(stop) + 1 if stop in before else len(before)
        np.testing.assert_array_equal(after, before[:at])
    assert stopped.new_length_B.min() < stopped.new_length_B.max() == 14
    for row, length in zip(stopped.new_BN, stopped.new_length_B, strict=True):
        assert (row[length:] == 0).all()


def test_every_row_has_its_own_limit(model):
    free, limited = generate(model, ragged(), 14), generate(model, ragged(), [1, 14, 5, 2])
    assert list(limited.new_length_B) == [1, 14, 5, 2] and limited.new_BN.shape == (4, 14)
    for before, after in zip(free.new, limited.new, strict=True):
        np.testing.assert_array_equal(after, before[: len(after)])


def test_the_loop_ends_when_every_row_is_done(model):
    """As many passes as the longest row needs, not as many as there is room for."""
    passes = []

    class Counted(type(model)):
        def __call__(self, tokens_BT, **arguments):
            jax.debug.callback(lambda: passes.append(tokens_BT.shape[1]))
            return super().__call__(tokens_BT, **arguments)

    structure, state = nnx.split(model)
    counted = nnx.merge(structure, state)
    counted.__class__ = Counted
    first = int(generate(model, [[4]], 1).new_BN[0, 0])
    generate(counted, [[4]], 500, stop_tokens=[first])
    assert passes.count(1) == 1


# --- Compiled once -----------------------------------------------------------------------------------------------


def test_other_lengths_within_a_bucket_compile_nothing(model):
    prompt = tokens(batch=1, length=9)[0]
    generate(model, [prompt[:3]], 5, Sample(0.5, top_p=0.7), seed=1)
    compiled = extend._cache_size()
    generate(model, [prompt], 9, Sample(0.6, top_p=0.8), seed=2, stop_tokens=())
    generate(model, [prompt[:1]], 2, Sample(0.7, top_p=0.9), seed=3)
    assert extend._cache_size() == compiled
    generate(model, [prompt], 40, Sample(0.6, top_p=0.8))
    assert extend._cache_size() == compiled + 1


def test_buckets_waste_less_than_a_quarter():
    for number in range(1, 400):
        assert number <= generate_module._bucket(number) < max(17, 1.25 * number)


# --- Seeds -------------------------------------------------------------------------------------------------------


def test_greedy_ignores_the_seed(model):
    np.testing.assert_array_equal(
        generate(model, tokens(), 6, seed=0).new_BN, generate(model, tokens(), 6, seed=1).new_BN
    )


def test_a_seed_decides_the_sample(model):
    samples = [generate(model, tokens(), 20, Sample(), seed=seed).new_BN for seed in (0, 0, 1)]
    np.testing.assert_array_equal(samples[0], samples[1])
    assert (samples[0] != samples[2]).any()
    for sample in samples:
        assert sample.min() >= 0 and sample.max() < VOCAB


def test_equal_prompts_get_different_draws(model):
    a, b = generate(model, np.repeat(tokens(batch=1), 2, axis=0), 20, Sample(1.5)).new_BN
    assert (a != b).any()


# --- What is refused, before anything is compiled ----------------------------------------------------------------

REFUSED = {
    "no prompt": (([], 3), {}, "There is no prompt"),
    "an empty prompt": ((np.zeros((1, 0), np.int32), 3), {}, "Prompt row 0 is empty"),
    "a row of padding only": (([[1, 2], []], 3), {}, "Prompt row 1 is empty"),
    "nested": (([[[1, 2]]], 3), {}, r"Prompt row 0 has shape \(1, 2\)"),
    "no new tokens": (([[1]], 0), {}, "max_new_tokens=0 leaves nothing to generate"),
    "no new tokens in a row": (([[1], [2]], [3, 0]), {}, "max_new_tokens=0"),
    "full cache": (([[1] * 5], 6), {"cache": Layout(10)}, "5 prompt tokens and 6 new ones do not fit .* cache of 10"),
    "temperature": (([[1]], 3, Sample(-1.0)), {}, "temperature=-1.0 must be 0"),
    "not a number": (([[1]], 3, Sample(float("nan"))), {}, "temperature=nan must be"),
    "top_k": (([[1]], 3, Sample(top_k=0)), {}, "top_k=0 leaves no token"),
    "top_p": (([[1]], 3, Sample(top_p=0.0)), {}, "top_p=0.0 must be above 0"),
    "min_p": (([[1]], 3, Sample(min_p=1.5)), {}, "min_p=1.5 must be above 0 and at most 1"),
    "beams": (([[1]], 3, Beam(0)), {}, "beams=0 follows no text"),
    "length penalty": (([[1]], 3, Beam(2, -1.0)), {}, "length_penalty=-1.0 must be"),
    "seeds": (([[1]], 3, Sample()), {"seed": [1, 2]}, "2 seeds were given for 1 prompts"),
}


@pytest.mark.parametrize(("arguments", "more", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_generated_is_refused(model, arguments, more, message):
    compiled = extend._cache_size()
    with pytest.raises(UserError, match=message):
        generate(model, *arguments, **more)
    assert extend._cache_size() == compiled


def test_more_candidates_than_tokens_are_refused(model):
    with pytest.raises(UserError, match="top_k=12 is larger than the vocabulary of 11"):
        generate(model, [[1]], 3, Sample(top_k=VOCAB + 1))
    generate(model, [[1]], 3, Sample(top_k=VOCAB))


def test_a_full_cache_that_just_fits_is_enough(model):
    np.testing.assert_array_equal(
        generate(model, [[1] * 5], 5, cache=Layout(10)).new_BN, generate(model, [[1] * 5], 5).new_BN
    )


def test_learned_positions_are_a_limit():
    model = build(tiny({"model.position.kind": "learned"}))
    prompt = tokens(batch=1, length=3)
    assert generate(model, prompt, LENGTH - 3).new_BN.shape == (1, LENGTH - 3)
    with pytest.raises(UserError, match=rf"need {LENGTH + 1} positions, but the model knows {LENGTH}"):
        generate(model, prompt, LENGTH - 2)


def test_a_model_that_sees_the_future_is_refused():
    model = build(tiny({"model.attention.mask": "none"}))
    with pytest.raises(UserError, match=r"model\.attention\.mask=none"):
        generate(model, tokens(), 2)
