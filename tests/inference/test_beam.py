"""Beam search: one beam is greedy, enough beams are exhaustive search."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest

from tests.inference.texts import ragged, wild
from tests.tiny import tokens
from transformer.inference.generate import generate
from transformer.inference.sampling import Beam
from transformer.model import build

V, T, STOP = 4, 3, 2


@pytest.fixture(scope="module")
def small():
    """Undecided enough that the best text is not the one that begins best."""
    return build(wild({"model.vocab_size": V, "model.init.std": 0.5}), seed=4)


def scored(model, prompt: np.ndarray, texts: list[tuple[int, ...]]) -> np.ndarray:
    """Log-probabilities of continuations, by one full pass."""
    whole = np.zeros((len(texts), len(prompt) + max(map(len, texts))), np.int32)
    for row, text in enumerate(texts):
        whole[row, : len(prompt) + len(text)] = [*prompt, *text]
    log_p = np.asarray(jax.nn.log_softmax(model(whole)))
    return np.array(
        [sum(log_p[row, len(prompt) - 1 + i, token] for i, token in enumerate(text)) for row, text in enumerate(texts)]
    )


@pytest.mark.parametrize("stop_tokens", [[], [7]], ids=["to the limit", "with a stop token"])
def test_one_beam_is_greedy(stop_tokens):
    model = build(wild())
    for penalty in (0.0, 1.0):
        beam = generate(model, ragged(), 14, Beam(1, penalty), stop_tokens=stop_tokens)
        greedy = generate(model, ragged(), 14, stop_tokens=stop_tokens)
        np.testing.assert_array_equal(beam.new_BN, greedy.new_BN)
        np.testing.assert_array_equal(beam.new_length_B, greedy.new_length_B)


@pytest.mark.parametrize("penalty", [0.0, 1.0, 3.0])
def test_as_many_beams_as_texts_is_exhaustive_search(small, penalty):
    """Every text of at most T tokens that ends at the limit or with the stop token."""
    prompts = [tokens(1, n, seed=n)[0] % V for n in (3, 1)]
    found = generate(small, prompts, T, Beam(V**T, penalty), stop_tokens=[STOP])
    ends = {t[: t.index(STOP) + 1] if STOP in t else t for t in itertools.product(range(V), repeat=T)}
    texts = sorted(ends)
    for row, prompt in enumerate(prompts):
        scores = scored(small, prompt, texts) / np.array([len(text) for text in texts]) ** penalty
        assert tuple(found.new[row]) == texts[scores.argmax()]
        assert found.score_B[row] == pytest.approx(scores.max(), abs=1e-4)
        assert np.sort(scores)[-2] < scores.max() - 1e-3  # no tie would do


def test_the_length_penalty_decides_how_long_texts_are(small):
    prompts = [tokens(1, n, seed=n)[0] % V for n in (3, 1, 2)]
    lengths = [
        generate(small, prompts, T, Beam(V**T, penalty), stop_tokens=[STOP]).new_length_B.sum()
        for penalty in (0.0, 1.0, 3.0)
    ]
    assert lengths[0] < lengths[1] < lengths[2] == 3 * T


def test_more_beams_find_likelier_texts(small):
    prompts = [tokens(1, 5, seed=s)[0] % V for s in range(8)]
    one, four, all_of_them = (generate(small, prompts, T, Beam(n, 0.0)).score_B for n in (1, 4, V**T))
    assert (all_of_them >= one - 1e-4).all() and (all_of_them >= four - 1e-4).all()
    assert (all_of_them > one + 0.1).any()


def test_the_score_is_the_log_probability_of_the_text(small):
    prompt = tokens(1, 5)[0] % V
    out = generate(small, [prompt], 6, Beam(3, 0.7))
    assert out.score_B[0] == pytest.approx(scored(small, prompt, [tuple(out.new[0])])[0] / 6**0.7, abs=1e-4)
