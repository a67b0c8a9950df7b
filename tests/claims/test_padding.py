"""Claims about padding and batching that are arithmetic: what padding may change, and what it costs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import VOCAB, tiny
from transformer.data.batch import Batch, positions_in_segments
from transformer.data.batching import length_buckets
from transformer.model import build
from transformer.training.objectives import OBJECTIVES
from transformer.training.step import Program

LENGTHS, WIDTH = (3, 8, 5, 1), 8
RNG = np.random.default_rng(0)
TEXTS = [RNG.integers(1, VOCAB, n).astype(np.int32) for n in LENGTHS]
POSITIONS = ("rope", "learned", "sinusoidal", "alibi", "t5", "none")


def padded(side: str, filler: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, segments) [4, WIDTH] with padding on one side."""
    tokens, segments = filler.copy(), np.zeros((len(TEXTS), WIDTH), np.int32)
    for b, text in enumerate(TEXTS):
        place = slice(0, len(text)) if side == "right" else slice(WIDTH - len(text), WIDTH)
        tokens[b, place], segments[b, place] = text, 1
    return tokens, segments


def check_outputs(overrides: dict[str, Any], side: str, masked: bool = True) -> None:
    """Logits of real tokens, with random padding, equal those of the text alone."""
    model = build(tiny(overrides))
    run = jax.jit(lambda tokens, **arguments: model(tokens, **arguments))
    tokens, segments = padded(side, RNG.integers(0, VOCAB, (len(TEXTS), WIDTH)).astype(np.int32))
    arguments = {"segments_BT": segments, "positions_BT": positions_in_segments(jnp.asarray(segments))}
    logits = np.asarray(run(tokens, **(arguments if masked else {})))
    for b, text in enumerate(TEXTS):
        alone = np.asarray(model(text[None]))[0]
        np.testing.assert_allclose(logits[b][segments[b] == 1], alone, atol=1e-5, rtol=1e-4)


class TestInvariance:
    claim = "padding_invariance"

    @pytest.mark.parametrize("side", ["right", "left"])
    @pytest.mark.parametrize("position", POSITIONS)
    def test_holds_padding_changes_no_real_token(self, position, side):
        more = {"model.position.t5_buckets": 8} if position == "t5" else {}
        check_outputs({"model.position.kind": position, **more}, side)

    def test_holds_without_a_causal_mask_too(self):
        check_outputs({"model.attention.mask": "none"}, "right")

    @pytest.mark.parametrize("side", ["right", "left"])
    def test_sabotage_by_a_model_without_a_mask(self, side):
        """Padding behind is hidden by the causal mask; in front, or in both directions, nothing hides it."""
        with pytest.raises(AssertionError):
            check_outputs({"model.attention.mask": "none"} if side == "right" else {}, side, masked=False)


def batch(filler: int) -> Batch:
    tokens, segments = padded("right", np.full((len(TEXTS), WIDTH), filler, np.int32))
    return Batch(tokens, segments_BL=segments)


def gradient(filler: int, weights: np.ndarray | None = None) -> tuple[float, Any]:
    """Loss and gradient of a padded batch."""
    program = Program(tiny({"model.embedding.tie": False}), VOCAB, np.ones(VOCAB, np.int32))
    state, given = program.init(0), batch(filler)
    given = given if weights is None else given.replace(weights_BL=weights)
    call = jax.jit(jax.value_and_grad(program.mean_loss, has_aux=True))
    (loss, _), grads = call(state.params, state.model_state, given, jax.random.key(0))
    return float(loss), grads


def check_gradient(weights: np.ndarray | None = None) -> None:
    """Token 0 stands nowhere but in the padding: its row gets no gradient, and another filler changes nothing."""
    loss, grads = gradient(0, weights)
    other, others = gradient(7, weights)
    assert not np.any(grads["embedding"]["table"][0])
    assert np.any(grads["embedding"]["table"][TEXTS[0][0]])
    assert loss == pytest.approx(other, rel=1e-6)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


class TestLossMask:
    claim = "padding_loss_mask"

    def test_holds_padding_sends_back_no_gradient(self):
        check_gradient()

    def test_sabotage_by_counting_padding_as_a_target(self):
        with pytest.raises(AssertionError):
            check_gradient(np.ones((len(TEXTS), WIDTH), np.float32))

    def test_holds_the_loss_is_divided_by_the_number_of_real_targets(self):
        program = Program(tiny(), VOCAB, np.ones(VOCAB, np.int32))
        model = program.model(program.init(0))
        losses = OBJECTIVES.build("clm", program.config).losses(model, batch(0), None, train=False)
        texts = [text for text in TEXTS if len(text) > 1]
        alone = [program.objective.losses(model, Batch(text[None]), None, train=False).nll_BT for text in texts]
        wanted = np.concatenate([np.asarray(nll)[0] for nll in alone])
        assert float(losses.weights_BT.sum()) == len(wanted) == sum(n - 1 for n in LENGTHS)
        assert float(losses.mean(losses.nll_BT)) == pytest.approx(wanted.mean(), rel=1e-5)
        of_rows = np.mean([float(nll.mean()) for nll in alone])
        assert abs(of_rows - wanted.mean()) > 1e-3  # a mean over sequences is another number


def waste(batches: list[tuple[np.ndarray, int]], lengths: np.ndarray) -> float:
    """Share of the positions that is padding."""
    return 1 - lengths.sum() / sum(len(rows) * width for rows, width in batches)


class TestBuckets:
    claim = "dynamic_batching_waste"
    lengths = np.clip(np.random.default_rng(1).lognormal(2.5, 0.7, 2000).astype(int), 1, 128)

    def at_random(self) -> list[tuple[np.ndarray, int]]:
        rows = np.random.default_rng(2).permutation(len(self.lengths))
        return [(r, int(self.lengths[r].max())) for r in np.split(rows, range(32, len(rows), 32))]

    def check(self, batches: list[tuple[np.ndarray, int]]) -> None:
        """Every row comes once and fits, and less of the batches is padding than of batches at random."""
        assert sorted(np.concatenate([r for r, _ in batches]).tolist()) == list(range(len(self.lengths)))
        assert all(self.lengths[r].max() <= width for r, width in batches)
        assert waste(batches, self.lengths) < 0.35 < 0.5 < waste(self.at_random(), self.lengths)

    def test_holds_rows_of_similar_length_waste_less_than_rows_at_random(self):
        bucketed = list(length_buckets(self.lengths, 32, 128))
        self.check(bucketed)
        assert {width for _, width in bucketed} <= {2**i for i in range(8)}

    def test_sabotage_by_rows_at_random(self):
        with pytest.raises(AssertionError):
            self.check(self.at_random())
