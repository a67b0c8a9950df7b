"""Filling places: what is fixed stays, what is filled is what the model says."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.inference.texts import wild
from tests.tiny import VOCAB, tokens
from transformer.errors import UserError
from transformer.inference.masked import Gibbs, MaskPredict, fill
from transformer.model import build

MASK = VOCAB - 1
SAMPLERS = {"one pass": MaskPredict(1), "mask-predict": MaskPredict(4), "gibbs": Gibbs(30), "short gibbs": Gibbs(1)}
TEXT = tokens(2, 6) % MASK
FREE = np.array([[0, 1, 1, 0, 1, 0], [1, 1, 1, 1, 1, 1]], bool)


@pytest.fixture(scope="module")
def model():
    return build(wild({"model.attention.mask": "none"}))


def log_p(model, text: np.ndarray) -> np.ndarray:
    logits = np.asarray(model(text)).copy()
    logits[..., MASK] = -np.inf
    return np.asarray(jax.nn.log_softmax(logits))


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_fixed_places_stay_fixed(model, sampler):
    out = fill(model, TEXT, FREE, MASK, sampler)
    np.testing.assert_array_equal(out[~FREE], TEXT[~FREE])
    assert out.dtype == np.int32 and out.min() >= 0 and out.max() < MASK
    other = np.where(FREE, (TEXT + 1) % MASK, TEXT)
    np.testing.assert_array_equal(fill(model, other, FREE, MASK, sampler), out)  # what stood there is not read


def test_one_pass_takes_the_likeliest_of_each_place(model):
    masked = np.where(FREE, MASK, TEXT)
    expected = np.where(FREE, log_p(model, masked).argmax(axis=-1), TEXT)
    np.testing.assert_array_equal(fill(model, TEXT, FREE, MASK, MaskPredict(1)), expected)
    elsewhere = np.where(FREE, TEXT, (TEXT + 3) % MASK)
    assert (fill(model, elsewhere, FREE, MASK, MaskPredict(1))[FREE] != expected[FREE]).any()  # what is fixed is read


def test_mask_predict_follows_the_paper(model):
    """Written out row by row, with loops."""
    passes = 3
    for row in range(2):
        places = np.flatnonzero(FREE[row])
        text, certainty = TEXT[row].copy(), dict.fromkeys(places, -np.inf)
        for i in range(passes):
            again = sorted(places, key=lambda at: certainty[at])[: len(places) * (passes - i) // passes]
            read = text.copy()
            read[again] = MASK
            said = log_p(model, read[None])[0]
            for at in again:
                text[at], certainty[at] = said[at].argmax(), said[at].max()
        np.testing.assert_array_equal(fill(model, TEXT, FREE, MASK, MaskPredict(passes))[row], text)


def test_gibbs_draws_from_the_conditional(model):
    """One free place: its draws follow the model's distribution at that place."""
    rows, free = 3000, np.zeros((3000, 6), bool)
    free[:, 2] = True
    text = np.repeat(TEXT[:1], rows, axis=0)
    drawn = fill(model, text, free, MASK, Gibbs(2, temperature=2.0), seed=1)[:, 2]
    masked = TEXT[:1].copy()
    masked[:, 2] = MASK
    expected = np.asarray(jax.nn.softmax(log_p(model, masked)[0, 2] / 2.0))
    observed = np.bincount(drawn, minlength=VOCAB) / rows
    assert (np.abs(observed - expected) < 5 * np.sqrt(expected * (1 - expected) / rows) + 1e-3).all()


def test_a_seed_decides_gibbs_alone(model):
    a, b, c = (fill(model, TEXT, FREE, MASK, Gibbs(20), seed=seed) for seed in (0, 0, 1))
    assert (a == b).all() and (a != c).any()
    one, other = (fill(model, TEXT, FREE, MASK, seed=seed) for seed in (0, 1))
    assert (one == other).all()


def test_padding_changes_nothing(model):
    padded, free = np.pad(TEXT, ((0, 0), (0, 3))), np.pad(FREE, ((0, 0), (0, 3)))
    segments = np.pad(np.ones_like(TEXT), ((0, 0), (0, 3)))
    out = fill(model, padded, free, MASK, MaskPredict(3), segments_BT=segments)
    np.testing.assert_array_equal(out[:, :6], fill(model, TEXT, FREE, MASK, MaskPredict(3)))


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rope"])
def test_documents_of_one_row_are_filled_as_if_alone(position):
    """Positions begin anew in each, as they do in training."""
    model = build(wild({"model.attention.mask": "none", "model.position.kind": position}))
    packed, free = TEXT.reshape(1, -1), FREE.reshape(1, -1)
    alone = [fill(model, TEXT[i : i + 1], FREE[i : i + 1], MASK, MaskPredict(1)) for i in range(2)]
    once = fill(model, packed, free, MASK, MaskPredict(1), segments_BT=np.repeat([[1, 2]], 6, axis=1))
    np.testing.assert_array_equal(once, np.concatenate(alone, axis=1))


REFUSED = {
    "shapes": ((TEXT, FREE[:1], MASK), {}, r"shape \(2, 6\) and free places \(1, 6\)"),
    "nothing free": ((TEXT, FREE & [[True], [False]], MASK), {}, "Row 1 has no free place"),
    "free padding": ((TEXT, FREE, MASK), {"segments_BT": np.zeros_like(TEXT)}, "A free place is padding"),
    "no pass": ((TEXT, FREE, MASK, MaskPredict(0)), {}, "iterations=0 predicts nothing"),
    "no step": ((TEXT, FREE, MASK, Gibbs(0)), {}, "steps=0 draws nothing"),
    "no temperature": ((TEXT, FREE, MASK, Gibbs(1, 0.0)), {}, "temperature=0.0 must be a positive"),
}


@pytest.mark.parametrize(("arguments", "more", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_filled_is_refused(model, arguments, more, message):
    with pytest.raises(UserError, match=message):
        fill(model, *arguments, **more)


def test_a_causal_model_is_refused():
    with pytest.raises(UserError, match="cannot fill places"):
        fill(build(wild()), TEXT, FREE, MASK)
