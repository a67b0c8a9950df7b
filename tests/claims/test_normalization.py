"""Exact claims of normalisation, each with a sabotage that it must notice."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.claims.layers import D, T, V, context, model, stream, tokens
from transformer.model.context import Context
from transformer.model.masks import Mask
from transformer.model.normalization import NORMS, LayerNorm, RMSNorm
from transformer.model.positions import NoPosition
from transformer.model.taps import replace
from transformer.schema import Config, Norm


def norm(kind: str = "layernorm", width: int = D, **fields):
    return NORMS.build(kind, Norm(kind=kind, affine=False, **fields), width)


# --- What LayerNorm promises -------------------------------------------------------------------------------------


def check_scale_free(apply) -> None:
    x = 1000 * stream()  # so large that epsilon is nothing even at the smallest factor
    for factor in (1e-2, 1e-1, 1e1, 1e4):
        np.testing.assert_allclose(apply(factor * x), apply(x), atol=1e-5)


class TestLayernormBoundsReads:
    claim = "layernorm_bounds_reads"

    def test_holds(self):
        check_scale_free(norm())
        read = norm()(1e4 * stream())
        assert np.abs(read).max() <= np.sqrt(D - 1) + 1e-3  # the largest entry a centred vector of unit variance has

    def test_sabotage(self):
        for apply in (norm("none") or (lambda x: x), jnp.tanh):
            with pytest.raises(AssertionError):
                check_scale_free(apply)
        small = norm(epsilon=1.0)  # an epsilon that is not small against the input
        with pytest.raises(AssertionError):
            check_scale_free(lambda x: small(x / 1000))


def reads(made, monkeypatch, cls=LayerNorm) -> list[np.ndarray]:
    """What every norm of a model returns before gain and bias."""
    seen, original = [], cls.normalize

    def normalize(self, x, context):
        seen.append(original(self, x, context))
        return seen[-1]

    with monkeypatch.context() as patch:
        patch.setattr(cls, "normalize", normalize)
        made(tokens())
    return [np.asarray(x, np.float64) for x in seen]


def check_statistics(outputs: list[np.ndarray], count: int) -> None:
    assert len(outputs) == count
    for x in outputs:
        assert np.abs(x.mean(-1)).max() <= 1e-6, "not centred"
        assert np.abs(x.var(-1) - 1).max() <= 1e-3, "not of unit variance"


class TestLayernormStatistics:
    claim = "layernorm_statistics"

    @pytest.mark.parametrize("std", [0.4, 2.0])
    def test_holds(self, std, monkeypatch):
        made = model(num_layers=4, init__std=std)
        for block in made.blocks:  # as after training: gains are no longer one
            block.ffn.in_norm.gain = nnx.Param(jnp.linspace(0.1, 3, D))
        check_statistics(reads(made, monkeypatch), 2 * 4 + 1)
        np.testing.assert_array_equal(made(tokens(), train=True), made(tokens()))

    def test_sabotage(self, monkeypatch):
        with pytest.raises(AssertionError, match="not centred"):
            check_statistics(reads(model(norm__kind="rmsnorm"), monkeypatch, RMSNorm), 5)
        with pytest.raises(AssertionError, match="unit variance"):
            check_statistics(reads(model(norm__epsilon=0.1), monkeypatch), 5)
        made = model(norm__kind="batchnorm")
        assert not np.array_equal(made(tokens(), train=True), made(tokens()))


def check_batch_independent(kind: str) -> None:
    """The logits of one row, in training mode: alone, among 64, and with padding behind it."""
    alone, others = tokens(0, 1), tokens(1, 63)
    run = lambda x, **kw: np.asarray(model(norm__kind=kind)(x, train=True, **kw))  # noqa: E731
    wanted = run(alone)
    np.testing.assert_allclose(run(jnp.concatenate([alone, others]))[:1], wanted, atol=1e-4)
    padded = jnp.concatenate([alone, jnp.full((1, 3), V - 1)], axis=1)
    segments = jnp.asarray([[1] * T + [0] * 3])
    np.testing.assert_allclose(run(padded, segments_BT=segments)[:, :T], wanted, atol=1e-4)


class TestLayernormBatchIndependent:
    claim = "layernorm_batch_independent"

    def test_holds(self):
        check_batch_independent("layernorm")

    def test_sabotage(self):
        with pytest.raises(AssertionError):
            check_batch_independent("batchnorm")


def check_rms_not_variance(apply) -> None:
    """Unit mean square; the variance falls short of one by the squared mean."""
    for offset in (0.5, 2.0, -5.0):
        y = np.asarray(apply(stream() + offset), np.float64)
        np.testing.assert_allclose((y**2).mean(-1), 1, atol=1e-4)
        np.testing.assert_allclose(y.var(-1), 1 - y.mean(-1) ** 2, atol=1e-4)
        assert y.var(-1).max() < 0.99, "unit variance after all"


class TestRmsnormUnitVariance:
    claim = "rmsnorm_unit_variance"

    def test_refuted(self):
        """It fixes the root mean square: an input with mean 2 comes out with a variance far below one."""
        check_rms_not_variance(norm("rmsnorm"))

    def test_of_a_centred_input_it_is_layernorm(self):
        x = stream() + 2
        np.testing.assert_allclose(norm("rmsnorm")(x - x.mean(-1, keepdims=True)), norm()(x), atol=1e-6)

    def test_sabotage(self):
        with pytest.raises(AssertionError, match="after all"):
            check_rms_not_variance(norm())


# --- BatchNorm ---------------------------------------------------------------------------------------------------


def early_from_late(kind: str) -> float:
    """In training mode: the largest gradient of the first row's first logits with respect to its later tokens."""
    structure, params, state = nnx.split(model(norm__kind=kind), nnx.Param, ...)
    params, state = nnx.to_pure_dict(params), nnx.to_pure_dict(state)

    def first(shift_TD):
        made = nnx.merge(structure, params, state)
        shifted = replace(made, embedding=lambda x: x.at[0].add(shift_TD))
        return jnp.square(shifted(tokens(batch=4), train=True)[0, 0]).sum()

    return float(np.abs(jax.jit(jax.grad(first))(jnp.zeros((T, D)))[1:]).max())


def check_leaks(kind: str) -> None:
    assert early_from_late(kind) > 1e-3


class TestBnBreaksCausality:
    claim = "bn_breaks_causality"

    @pytest.mark.parametrize("kind", ["batchnorm", "batchnorm_masked"])
    def test_holds(self, kind):
        check_leaks(kind)
        for causal in ("layernorm", "batchnorm_time_local"):
            assert early_from_late(causal) == 0.0

    def test_sabotage(self):
        for causal in ("layernorm", "batchnorm_time_local"):
            with pytest.raises(AssertionError):
                check_leaks(causal)


SHARES = (0.0, 0.25, 0.5, 0.75)


def estimates(kind: str, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Means and variances [batches, D] that the norm takes from batches of rows of random length."""
    rng, rows, length = np.random.default_rng(0), 8, 16
    padding = rng.normal(size=D) + 1  # one vector, as the embedding of a padding token is
    layer = norm(kind, options=(("batchnorm_momentum", 0.0),))  # keeps the statistics of the last batch alone
    means, variances = [], []
    for _ in range(150):
        x = rng.normal(size=(rows, length, D)) * 0.5
        spread = min(share, 1 - share)
        lengths = np.round(length * (1 - share + spread * rng.uniform(-1, 1, rows))).clip(1).astype(int)
        real = np.arange(length) < lengths[:, None]
        x[~real] = padding
        mask = Mask(query_segments_BT=jnp.asarray(real, jnp.int32))
        where = Context(jnp.arange(length)[None], mask, NoPosition(Config()), train=True)
        layer(jnp.asarray(x, jnp.float32), where)
        means.append(np.asarray(layer.mean.get_value()))
        variances.append(np.asarray(layer.variance.get_value()))
    return np.array(means), np.array(variances)


def check_noise_grows(by_share: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for statistic in (0, 1):
        noise = [found[statistic].var(axis=0).mean() for found in by_share]
        assert noise[-1] > 2 * noise[0], f"{'mean' if statistic == 0 else 'variance'}: {noise}"


class TestBnPaddingNoise:
    claim = "bn_padding_noise"

    def test_holds(self):
        naive, masked = ([estimates(kind, s) for s in SHARES] for kind in ("batchnorm", "batchnorm_masked"))
        check_noise_grows(naive)
        check_noise_grows(masked)
        # Masking cures the bias (the real tokens have mean zero), and only that.
        bias = {name: np.abs(found[-1][0].mean(axis=0)).max() for name, found in (("n", naive), ("m", masked))}
        assert bias["n"] > 0.5 and bias["m"] < 0.05, bias

    def test_sabotage(self):
        with pytest.raises(AssertionError):
            check_noise_grows([estimates("batchnorm", 0.0)] * 4)
        layer, where = norm(), context()
        assert np.array_equal(layer(stream(batch=2), where)[0], layer(stream(batch=2)[:1], where)[0])
