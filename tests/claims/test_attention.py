"""Exact claims about attention, scores and softmax, each with a sabotage that it must notice."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer import Config, build, replace
from transformer.model import taps
from transformer.model.attention_backends import BACKENDS, AttentionCall
from transformer.model.attention_parts import SCALES, HeadShape
from transformer.model.attention_weights import WEIGHTS, Sight, WeightRule
from transformer.model.context import Context
from transformer.model.masks import Mask
from transformer.model.positions import NoPosition

REFERENCE = Config()
V, T, H = 17, 6, 2
TINY = {
    "model.d_model": 16,
    "model.num_layers": 1,
    "model.attention.num_heads": H,
    "model.init.std": 0.5,  # large enough that untrained attention decides something
    "data.sequence_length": 8,
}


def rule(kind: str) -> WeightRule:
    return WEIGHTS.build(kind, dataclasses.replace(REFERENCE.model.attention, weights=kind))


def weights_of(kind: str, scores: np.ndarray) -> np.ndarray:
    """Weights [rows, keys] of scores [rows, keys], all keys visible, in float64."""
    with jax.enable_x64(True):
        at = jnp.arange(scores.shape[-1])[None]
        sight = Sight(None, jnp.zeros((1, scores.shape[0]), jnp.int32), at)
        return np.asarray(rule(kind)(jnp.asarray(scores, jnp.float64)[None, None], sight))[0, 0]


def scale(kind: str, head_dim: int) -> float:
    return SCALES.build(kind, HeadShape(1, 1, head_dim, head_dim))


def call(q, k, v, *, causal: bool = False, kind: str = "softmax") -> AttentionCall:
    """Attention over arrays [B, H, T, K], [B, G, S, K], [B, G, S, U]; queries are scaled already."""
    queries, keys = jnp.arange(q.shape[2])[None], jnp.arange(k.shape[2])[None]
    mask, none = Mask(causal=causal), NoPosition(REFERENCE)
    context = Context(positions_BT=queries, mask=mask, position=none)
    return AttentionCall(q, k, v, queries, keys, q.shape[1], mask, rule(kind), 0.0, 0.0, context)


def tiny(**overrides):
    return build(replace(REFERENCE, {**TINY, **{k.replace("__", "."): v for k, v in overrides.items()}}), V)


TOKENS = np.random.default_rng(0).integers(0, V, (2, T), dtype=np.int32)


def tapped(model, name: str) -> np.ndarray:
    name = f"blocks.0.attention.{name}"
    return np.asarray(taps.capture(model, name)(TOKENS)[1][name])


# --- The formula -------------------------------------------------------------------------------------------------


def loops(q, k, v, causal: bool, divisor: Callable[[int], float] = math.sqrt) -> np.ndarray:
    """softmax(q k / sqrt(d_k)) v in float64, one query at a time."""
    out = np.zeros((*q.shape[:3], v.shape[-1]))
    for b, h, t in np.ndindex(q.shape[:3]):
        keys = range(t + 1 if causal else k.shape[2])
        scores = np.array([math.fsum(q[b, h, t] * k[b, h, s]) / divisor(q.shape[-1]) for s in keys])
        e = np.exp(scores - scores.max())
        out[b, h, t] = sum(w * v[b, h, s] for w, s in zip(e / e.sum(), keys, strict=True))
    return out


def check_formula(backend: str, dtype: str, tolerance: float, divisor=math.sqrt) -> None:
    rng = np.random.default_rng(0)
    for _ in range(6):
        batch, heads, length, head_dim, value_dim = (int(n) for n in rng.integers(1, 9, 5))
        q, k = rng.normal(size=(2, batch, heads, length, head_dim))
        v, causal = rng.normal(size=(batch, heads, length, value_dim)), bool(rng.integers(2))
        with jax.enable_x64(True):
            arrays = [jnp.asarray(x, dtype) for x in (q, k, v)]
            exact = [np.asarray(x, np.float64) for x in arrays]
            factor = jnp.asarray(scale("inv_sqrt", head_dim), dtype)
            made = BACKENDS.build(backend, call(arrays[0] * factor, *arrays[1:], causal=causal))
            assert made.dtype == dtype
            np.testing.assert_allclose(
                np.asarray(made, np.float64), loops(*exact, causal, divisor), atol=tolerance, rtol=0
            )


class TestReferenceFormula:
    claim = "attn_reference_formula"

    # `fused` computes in float32 and for equal widths only: tests/model/test_attention_backends.py.
    @pytest.mark.parametrize("backend", ["reference", "flash"])
    @pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12), ("bfloat16", 0.05)])
    def test_holds(self, backend, dtype, tolerance):
        check_formula(backend, dtype, tolerance)

    def test_sabotage(self):
        with pytest.raises(AssertionError):
            check_formula("reference", "float32", 1e-5, divisor=lambda d: d)


# --- Rows are averages -------------------------------------------------------------------------------------------


def check_averages(kind: str) -> None:
    """Weights are non-negative and sum to one over visible keys; every head output stays between the values."""
    rng = np.random.default_rng(1)
    for causal in (False, True):
        q, k, v = (jnp.asarray(x, jnp.float32) for x in rng.normal(size=(3, 2, 3, 7, 5)))
        out, seen = taps.capture(lambda c: BACKENDS.build("reference", c))(call(q, k, v, causal=causal, kind=kind))
        weights = np.asarray(seen["attention.weights"])
        assert weights.min() >= 0
        np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-6)
        for t in range(7):
            values = np.asarray(v)[:, :, : t + 1 if causal else 7]
            assert np.all(out[:, :, t] >= values.min(2) - 1e-6)
            assert np.all(out[:, :, t] <= values.max(2) + 1e-6)


class TestRowStochastic:
    claim = "attn_row_stochastic"

    def test_holds(self):
        check_averages("softmax")

    @pytest.mark.parametrize("kind", ["sigmoid", "raw", "softmax1"])
    def test_sabotage(self, kind):
        with pytest.raises(AssertionError):
            check_averages(kind)

    def test_does_not_hold_after_the_output_projection(self):
        model = tiny()
        values, output = (tapped(model, name) for name in ("value", "output"))
        values = values.transpose(0, 2, 1, 3).reshape(output.shape)
        lowest, highest = np.minimum.accumulate(values, axis=1), np.maximum.accumulate(values, axis=1)
        assert np.any((output < lowest) | (output > highest))


# --- Scale -------------------------------------------------------------------------------------------------------

HEAD_DIMS = (4, 16, 64, 256, 512, 1024)


def gaussian_products(d_k: int, rng: np.random.Generator, draws: int) -> np.ndarray:
    """Dot products of standard normal vectors: given |q|, q k is normal with that deviation, and |q|^2 is chi^2."""
    return np.sqrt(rng.chisquare(d_k, draws)) * rng.normal(size=draws)


def sign_products(d_k: int, rng: np.random.Generator, draws: int) -> np.ndarray:
    """Dot products of vectors of random signs: agreements minus disagreements."""
    return 2.0 * rng.binomial(d_k, 0.5, draws) - d_k


def check_variance(products: Callable, kind: str = "inv_sqrt") -> None:
    rng = np.random.default_rng(2)
    variances, scaled = [], []
    for d_k in HEAD_DIMS:
        drawn = products(d_k, rng, 400_000)
        variances.append(drawn.var())
        scaled.append((drawn * scale(kind, d_k)).var())
    slope = np.polyfit(np.log(HEAD_DIMS), np.log(variances), 1)[0]
    assert slope == pytest.approx(1.0, abs=0.02)
    np.testing.assert_allclose(scaled, 1.0, atol=0.05)


class TestDotProductVariance:
    claim = "dot_product_variance"

    @pytest.mark.parametrize("products", [gaussian_products, sign_products])
    def test_holds(self, products):
        check_variance(products)

    def test_the_drawn_products_are_those_of_vectors(self):
        rng = np.random.default_rng(3)
        q, k = rng.normal(size=(2, 40_000, 16))
        direct, drawn = (q * k).sum(-1), gaussian_products(16, rng, 40_000)
        np.testing.assert_allclose(
            np.quantile(direct, (0.05, 0.5, 0.95)), np.quantile(drawn, (0.05, 0.5, 0.95)), atol=0.2
        )

    def test_sabotage(self):
        for kind in ("none", "inv"):
            with pytest.raises(AssertionError):
                check_variance(gaussian_products, kind)

        def repeated(d_k, rng, draws):  # entries are not independent: all alike
            return d_k * rng.normal(size=draws) * rng.normal(size=draws)

        with pytest.raises(AssertionError):
            check_variance(repeated)


def saturation(d_k: int, keys: int, kind: str) -> tuple[float, float, float]:
    """Medians over rows of 1 - sum p^2, of the Jacobian's Frobenius norm, and of the entropy over its largest."""
    rng = np.random.default_rng(4)
    scores = np.sqrt(rng.chisquare(d_k, (2000, 1))) * rng.normal(size=(2000, keys)) * scale(kind, d_k)
    p = weights_of("softmax", scores)
    second, third = (p**2).sum(-1), (p**3).sum(-1)
    jacobian = np.sqrt(np.maximum(second - 2 * third + second**2, 0))  # of diag(p) - p p^T
    entropy = -(p * np.log(np.maximum(p, 1e-300))).sum(-1) / math.log(keys)
    return float(np.median(1 - second)), float(np.median(jacobian)), float(np.median(entropy))


def check_saturates(kind: str, keys: int) -> None:
    spread, jacobian, entropy = zip(*(saturation(d_k, keys, kind) for d_k in HEAD_DIMS), strict=True)
    assert all(a > b for a, b in itertools.pairwise(spread)), "the spread shrinks with every widening"
    assert spread[-1] < 0.01 and jacobian[-1] < 0.01 and entropy[-1] < 0.01


class TestSaturation:
    claim = "softmax_saturation_gradient"

    @pytest.mark.parametrize("keys", [16, 64, 256])
    def test_holds(self, keys):
        """For wide heads; below, the narrow ones where the argument turns round."""
        check_saturates("none", keys)
        assert all(saturation(d_k, keys, "inv_sqrt")[0] > 0.8 for d_k in HEAD_DIMS)

    def test_narrow_heads_have_more_gradient_without_the_scale(self):
        assert saturation(16, 64, "none")[1] > saturation(16, 64, "inv_sqrt")[1]
        assert saturation(1024, 64, "none")[1] < saturation(1024, 64, "inv_sqrt")[1]
        assert saturation(64, 64, "none")[0] > 0.1, "at d_k = 64 the median row is far from one-hot"

    def test_sabotage(self):
        for kind in ("inv_sqrt", "inv"):
            with pytest.raises(AssertionError):
                check_saturates(kind, 64)


def check_not_linear(deviation: float) -> None:
    """softmax(s) against its first-order expansion (1 + s - mean s) / n around equal scores."""
    scores = deviation * np.random.default_rng(5).normal(size=(4000, 64))
    exact = weights_of("softmax", scores)
    linear = (1 + scores - scores.mean(-1, keepdims=True)) / 64
    assert (np.abs(linear - exact) / exact).mean() > 0.5
    assert (linear < 0).mean() > 0.1
    assert np.median(exact.max(-1) / exact.min(-1)) > 50


class TestLinearRegime:
    claim = "softmax_linear_regime"

    def test_refuted(self):
        """At unit variance the expansion is off by more than the weights themselves, and one in six is negative."""
        check_not_linear(1.0)

    def test_sabotage(self):
        with pytest.raises(AssertionError):  # where softmax is linear, the check says so
            check_not_linear(0.05)


# --- Numbers quoted in the sources -------------------------------------------------------------------------------


class TestQuotedSoftmaxOfThree:
    claim = "seed_softmax_numbers_q6"

    def test_refuted(self):
        """(3, 0, 0) gives 0.909 and 0.0453, not 0.95 and 0.025, with p(1 - p) = 0.0432; the rest is right."""
        p = weights_of("softmax", np.array([[3.0, 0, 0]]))[0]
        np.testing.assert_allclose(p, [0.909, 0.0453, 0.0453], atol=5e-4)
        assert p[1] * (1 - p[1]) == pytest.approx(0.0432, abs=5e-5)
        assert abs(p[0] - 0.95) > 0.005 and abs(p[1] - 0.025) > 0.0005
        sharp = weights_of("softmax", np.array([[24.0, 0, 0]]))[0]
        assert sharp[1] == pytest.approx(3.8e-11, rel=0.01)
        assert 3 * math.sqrt(64) == 24

    def test_sabotage(self):
        other_base = 7.0 ** np.array([3.0, 0, 0])  # base 7 instead of e is no softmax
        assert abs((other_base / other_base.sum())[0] - 0.909) > 5e-4


class TestQuotedSoftmaxOfFour:
    claim = "seed_softmax_numbers_q15"
    printed = (0.62, 0.23, 0.09, 0.05)

    def check(self, scores) -> None:
        # 0.6249 and 0.0935 are printed cut or rounded to two digits: within one unit of the last.
        np.testing.assert_allclose(weights_of("softmax", np.array([scores]))[0], self.printed, atol=5.5e-3)

    def test_holds(self):
        self.check([2, 1, 0.1, -0.5])

    def test_sabotage(self):
        with pytest.raises(AssertionError):
            self.check([2, 1, 0.1, -0.3])


# --- Sharpening and competition ----------------------------------------------------------------------------------


def check_sharpens(kind: str) -> None:
    scores = np.random.default_rng(6).normal(size=(50, 9)) * 3
    p = weights_of(kind, scores)
    ratios = p[:, :, None] / p[:, None, :]
    np.testing.assert_allclose(ratios, np.exp(scores[:, :, None] - scores[:, None, :]), rtol=1e-6)
    leads = np.zeros((20, 9))
    leads[:, 0] = np.arange(20)
    top = weights_of(kind, leads)[:, 0]
    assert np.all(np.diff(top) > 0) and top[-1] > 1 - 1e-6


class TestSharpens:
    claim = "softmax_sharpens_exponentially"

    def test_holds(self):
        check_sharpens("softmax")

    @pytest.mark.parametrize("kind", ["sigmoid", "relu"])
    def test_sabotage(self, kind):
        with pytest.raises((AssertionError, FloatingPointError)), np.errstate(all="ignore"):
            check_sharpens(kind)


def jacobian(kind: str) -> np.ndarray:
    """[rows, j, i]: how weight j answers to score i."""
    at = jnp.arange(7)[None]

    def weights(scores):
        return rule(kind)(scores[None, None, None], Sight(None, at[:, :1], at))[0, 0, 0]

    with jax.enable_x64(True):
        scores = jnp.asarray(np.random.default_rng(7).normal(size=(20, 7)) * 2)
        return np.asarray(jax.vmap(jax.jacobian(weights))(scores))


def check_competition(kind: str) -> None:
    by_score, off = jacobian(kind), ~np.eye(7, dtype=bool)
    assert np.all(by_score[:, ~off] > 0) and np.all(by_score[:, off] < 0)
    np.testing.assert_allclose(by_score.sum(1), 0.0, atol=1e-12, err_msg="the budget is not fixed")


class TestBudget:
    claim = "attention_budget_competition"

    def test_holds(self):
        check_competition("softmax")

    def test_sabotage(self):
        with pytest.raises(AssertionError):
            check_competition("sigmoid")
        assert np.all(jacobian("sigmoid")[:, ~np.eye(7, dtype=bool)] == 0)
        with pytest.raises(AssertionError, match="the budget is not fixed"):
            check_competition("softmax1")  # keys compete, but a sink gives and takes


# --- Queries, keys and values ------------------------------------------------------------------------------------


def retrieval(temperature: float, orthogonal: bool = True) -> tuple[float, float]:
    """Largest error of a value looked up by its own key, and weight on all other keys together."""
    rng, n = np.random.default_rng(8), 8
    keys = np.linalg.qr(rng.normal(size=(n, n)))[0]
    if not orthogonal:
        keys[1] = keys[0]
    values = rng.normal(size=(n, 3))
    with jax.enable_x64(True):
        arrays = (jnp.asarray(x)[None, None] for x in (keys / temperature, keys, values))
        out, seen = taps.capture(lambda c: BACKENDS.build("reference", c))(call(*arrays))
        weights = np.asarray(seen["attention.weights"])[0, 0]
        return float(np.abs(np.asarray(out)[0, 0] - values).max()), float(
            (weights - np.diag(weights.diagonal())).sum(-1).max()
        )


def check_lookup(orthogonal: bool = True) -> None:
    for temperature in (1.0, 0.1, 0.01):
        error, elsewhere = retrieval(temperature, orthogonal)
        rate = math.exp(-1 / temperature)
        assert elsewhere == pytest.approx(7 * rate / (1 + 7 * rate), rel=1e-6)
        assert error < 4 * elsewhere + 1e-14  # no value is further than that from another


class TestSoftLookup:
    claim = "qkv_soft_lookup"

    def test_holds(self):
        check_lookup()
        assert retrieval(1.0)[0] > 0.5 and retrieval(0.1)[0] < 1e-2 and retrieval(0.01)[0] < 1e-14

    def test_sabotage(self):
        with pytest.raises(AssertionError):
            check_lookup(orthogonal=False)


def check_symmetric(tie: str, position: str = "none") -> None:
    overrides = {"model__attention__mask": "none", "model__position__kind": position, "model__attention__tie": tie}
    scores = tapped(tiny(**overrides), "scores")
    np.testing.assert_allclose(scores, scores.swapaxes(-1, -2), atol=1e-6 * np.abs(scores).max())


def affinity(tie: str, position: str, tokens: list[int]) -> np.ndarray:
    """[H]: the score of the first of two tokens for the second."""
    overrides = {"model__attention__mask": "none", "model__position__kind": position, "model__attention__tie": tie}
    name = "blocks.0.attention.scores"
    seen = taps.capture(tiny(**overrides), name)(np.array([tokens], np.int32))[1]
    return np.asarray(seen[name])[0, :, 0, 1]


class TestTiedSymmetry:
    claim = "qk_tied_symmetric"

    def test_holds(self):
        check_symmetric("qk")
        np.testing.assert_allclose(affinity("qk", "none", [3, 5]), affinity("qk", "none", [5, 3]), rtol=1e-5)

    def test_sabotage(self):
        with pytest.raises(AssertionError):
            check_symmetric("none")

    def test_rotation_keeps_the_matrix_symmetric_but_tells_the_order_of_two_tokens(self):
        """With RoPE the scores are still products of one set of vectors with itself, hence symmetric. What comes back
        is direction between contents: "a before b" and "b before a" have different scores."""
        check_symmetric("qk", "rope")
        before, after = affinity("qk", "rope", [3, 5]), affinity("qk", "rope", [5, 3])
        assert np.all(np.abs(before - after) > 1e-3)


# --- The output projection ---------------------------------------------------------------------------------------


def moved_by_head(projection: str, head: int) -> np.ndarray:
    """[d_model]: which coordinates of the sublayer's output move when one head's output does."""
    model = tiny(model__attention__output_projection=projection)
    heads, output = "blocks.0.attention.heads", "blocks.0.attention.output"
    seen = {}

    def outputs(amount: float) -> np.ndarray:
        def keep(x):
            seen["output"] = x
            return x

        taps.replace(model, **{heads: lambda x: x.at[:, head].add(amount), output: keep})(TOKENS)
        return np.asarray(seen["output"])

    return np.abs(outputs(1.0) - outputs(0.0)).min(axis=(0, 1)) > 1e-6


def check_stays_in_slice(projection: str) -> None:
    for head in range(H):
        mine = np.arange(16) // 8 == head
        np.testing.assert_array_equal(moved_by_head(projection, head), mine)


class TestOutputMixesHeads:
    claim = "wo_mixes_heads"

    def test_holds(self):
        assert all(moved_by_head("full", head).all() for head in range(H))
        check_stays_in_slice("none")
        check_stays_in_slice("block_diagonal")

    def test_sabotage(self):
        with pytest.raises(AssertionError):
            check_stays_in_slice("full")
