"""Exact claims of the feed-forward network, each with a sabotage that it must notice."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import special
from scipy.optimize import linprog

from tests.claims.layers import D, T, context, model, stream, through_blocks
from transformer.model.attention import Attention
from transformer.model.feedforward import FEEDFORWARDS
from transformer.model.taps import capture, replace

KINDS = [kind for kind in FEEDFORWARDS if kind != "none"]


def layer(kind: str, **overrides):
    """One feed-forward network with biases that are not zero."""
    made = model(ffn__kind=kind, ffn__bias=True, **overrides).blocks[0].ffn.branch
    for name in {"up", "gate", "down"} & set(vars(made)):
        bias = getattr(made, name).bias.get_value()
        getattr(made, name).bias = nnx.Param(jnp.linspace(-1, 1, bias.size))
    return made


# --- Positions stay apart ----------------------------------------------------------------------------------------


def check_positionwise(apply) -> None:
    x = stream(batch=2)
    out = np.asarray(apply(x))
    changed = np.asarray(apply(x.at[:, 2].add(1.0)))
    others = np.arange(T) != 2
    assert np.array_equal(changed[:, others], out[:, others]), "a position moved with another"
    assert np.all(np.abs(changed - out)[:, 2].max(-1) > 1e-3)
    order = np.array([3, 0, 5, 1, 4, 2])
    np.testing.assert_allclose(apply(x[:, order]), out[:, order], atol=1e-5, rtol=1e-5)


class TestFfnPositionwise:
    claim = "ffn_positionwise"

    @pytest.mark.parametrize("kind", KINDS)
    def test_holds(self, kind):
        made = layer(kind)
        check_positionwise(lambda x: made(x, context()))

    def test_sabotage(self):
        """BatchNorm inside would mix positions; so would a weight that depends on the position."""
        made = model(norm__kind="batchnorm").blocks[0].ffn
        with pytest.raises(AssertionError, match="moved with another"):
            check_positionwise(lambda x: made(x, context(train=True)))
        plain = layer("gelu")
        with pytest.raises(AssertionError):
            check_positionwise(lambda x: plain(x, context()) * jnp.arange(1, T + 1)[:, None])


def convolution(x_BTD: jax.Array, kernel_WDF: jax.Array) -> jax.Array:
    """A convolution over time with padding that keeps the length."""
    return jax.lax.conv_general_dilated(
        x_BTD, kernel_WDF, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"), precision="highest"
    )


def check_convolutions(made, size: int) -> None:
    """Kernels hold the dense weights at their centre; the rest of a larger one is not zero."""

    def kernel_of(dense):
        kernel = dense.kernel.get_value()
        return jnp.zeros((size, *kernel.shape)).at[:].set(0.1 * kernel).at[size // 2].set(kernel)

    x = stream(batch=2)
    hidden = jax.nn.gelu(convolution(x, kernel_of(made.up)) + made.up.bias.get_value(), approximate=False)
    wanted = convolution(hidden, kernel_of(made.down)) + made.down.bias.get_value()
    error = np.abs(wanted - made(x, context())).max() / np.abs(wanted).max()
    assert error <= 1e-6, error


class TestFfnEquals1x1Conv:
    claim = "ffn_equals_1x1_conv"

    def test_holds(self):
        with jax.default_matmul_precision("highest"):
            check_convolutions(layer("gelu"), 1)

    def test_sabotage(self):
        with pytest.raises(AssertionError):
            check_convolutions(layer("gelu"), 3)


def reach(made, train: bool = False) -> np.ndarray:
    """[t, s]: the largest derivative of the block's output at t with respect to its input at s."""
    structure, params, state = nnx.split(made, nnx.Param, ...)
    params, state = nnx.to_pure_dict(params), nnx.to_pure_dict(state)

    def last(x):
        return nnx.merge(structure, params, state).blocks[0](x, context(train=train))[0]

    return np.abs(jax.jit(jax.jacobian(last))(stream())[:, :, 0]).max(axis=(1, 3))


def check_attention_alone_mixes(without: np.ndarray, with_attention: np.ndarray) -> None:
    assert np.all(np.diag(without) > 0) and np.all(without[~np.eye(T, dtype=bool)] == 0), "mixed without attention"
    assert np.array_equal(with_attention > 0, np.tril(np.ones((T, T), bool))), "attention does not fill the mask"


class TestAttentionOnlyCrossPosition:
    claim = "attention_only_cross_position"

    def test_holds(self):
        check_attention_alone_mixes(reach(model(layers="ffn")), reach(model()))

    def test_sabotage(self):
        leaky = reach(model(layers="ffn", norm__kind="batchnorm"), train=True)
        with pytest.raises(AssertionError, match="mixed without attention"):
            check_attention_alone_mixes(leaky, reach(model()))
        with pytest.raises(AssertionError, match="does not fill"):
            check_attention_alone_mixes(reach(model(layers="ffn")), reach(model(layers="ffn")))


# --- What is linear ----------------------------------------------------------------------------------------------


def nonlinearity(f) -> tuple[float, float]:
    """Relative errors of f(x + y) = f(x) + f(y) and of f(2x) = 2 f(x)."""
    x, y = stream(1), stream(2)
    both, double = np.asarray(f(x + y)), np.asarray(f(2 * x))
    additive = np.linalg.norm(both - f(x) - f(y)) / np.linalg.norm(both)
    return float(additive), float(np.linalg.norm(double - 2 * f(x)) / np.linalg.norm(2 * f(x)))


def check_not_linear(f) -> None:
    assert min(nonlinearity(f)) > 0.05, nonlinearity(f)


class TestPureAttentionIsLinear:
    claim = "pure_attention_is_linear"

    @pytest.mark.parametrize("norm", ["none", "layernorm"])
    def test_refuted(self, norm):
        """The softmax weights depend on the input: an attention-only stack fails additivity and homogeneity."""
        made = model(layers="attention", norm__kind=norm)
        check_not_linear(lambda x: through_blocks(made, x))

    def test_sabotage(self):
        """With the pattern frozen the same stack is linear, and the check says so."""
        made = model(layers="attention", norm__kind="none")
        uniform = jnp.tril(jnp.ones((T, T))) / jnp.arange(1, T + 1)[:, None]
        frozen = {f"blocks.{i}.attention.weights": lambda w: jnp.broadcast_to(uniform, w.shape) for i in range(2)}
        with pytest.raises(AssertionError):
            check_not_linear(replace(lambda x: through_blocks(made, x), **frozen))


def check_linear(f) -> None:
    """Superposition in float64, to 1e-12."""
    a, b = (jnp.asarray(np.random.default_rng(seed).normal(size=(1, 2, T, D // 2))) for seed in (1, 2))
    assert a.dtype == jnp.float64
    combined, apart = f(0.7 * a - 1.9 * b), 0.7 * f(a) - 1.9 * f(b)
    assert combined.dtype == jnp.float64
    error = np.linalg.norm(combined - apart) / np.linalg.norm(combined)
    assert error <= 1e-12, error


class TestAttentionLinearInV:
    claim = "attention_linear_in_v"

    def test_holds(self):
        made = model().blocks[0].attention.branch
        assert isinstance(made, Attention)
        x = stream()  # fixes queries and keys, and so the weights
        with jax.enable_x64(True):
            check_linear(lambda v: replace(made, **{"attention.value": lambda _: v})(x, context()))

    def test_sabotage(self):
        """Not so where keys change along with the values."""
        made, x = model().blocks[0].attention.branch, stream()
        with jax.enable_x64(True), pytest.raises(AssertionError):
            both = lambda v: dict.fromkeys(("attention.value", "attention.key"), lambda _: v)  # noqa: E731
            check_linear(lambda v: replace(made, **both(v))(x, context()))


# --- Width ------------------------------------------------------------------------------------------------------


def separable(features: np.ndarray, labels: np.ndarray) -> bool:
    """Whether a linear read-out with a threshold gets every label right: a feasibility problem."""
    signs = np.where(labels, 1.0, -1.0)[:, None]
    rows = -signs * np.hstack([features / np.abs(features).max(), np.ones((len(features), 1))])
    return linprog(np.zeros(rows.shape[1]), rows, -np.ones(len(rows)), bounds=(None, None), method="highs").status == 0


RATIOS = (0.5, 1, 2, 4, 16)
BITS = np.array(np.meshgrid(*[[-1.0, 1.0]] * 4)).reshape(4, -1).T  # all 16 settings of four bits


def separable_shares(kind: str) -> dict[str, np.ndarray]:
    """Shares of random dichotomies and of random first layers for AND and XOR, by width ratio."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(24, D))
    dichotomies = rng.integers(0, 2, (12, 24)).astype(bool)
    functions = {"and": (BITS[:, 0] > 0) & (BITS[:, 1] > 0), "xor": BITS[:, 0] * BITS[:, 1] < 0}
    embedded = BITS @ rng.normal(size=(4, D))
    shares: dict[str, list[float]] = {"dichotomies": [], "and": [], "xor": []}
    for ratio in RATIOS:

        def hidden(x, seed):
            made = model(seed, ffn__kind=kind, ffn__ratio=ratio, num_layers=1).blocks[0].ffn.branch  # noqa: B023
            return np.asarray(capture(made)(jnp.asarray(x, jnp.float32)[None], context())[1]["ffn.hidden"][0], float)

        features = hidden(points, 0)
        shares["dichotomies"].append(np.mean([separable(features, labels) for labels in dichotomies]))
        layers = [hidden(embedded, seed) for seed in range(6)]
        for name, labels in functions.items():
            shares[name].append(np.mean([separable(features, labels) for features in layers]))
    return {name: np.array(values) for name, values in shares.items()}


def check_rises_with_width(shares: dict[str, np.ndarray]) -> None:
    for name, share in shares.items():
        assert np.all(np.diff(share) >= 0), f"{name}: {share}"
        assert share[-1] == 1, f"{name}: {share}"
    assert shares["dichotomies"][0] < 0.5 and shares["xor"][0] < 1, shares


class TestFfnWidthSeparability:
    claim = "ffn_width_separability"

    def test_holds(self):
        check_rises_with_width(separable_shares("relu"))

    def test_sabotage(self):
        """Without an activation no width helps: XOR stays out of reach."""
        shares = separable_shares("linear")
        assert np.all(shares["xor"] == 0)
        with pytest.raises(AssertionError):
            check_rises_with_width(shares)


# --- A memory of keys and values ---------------------------------------------------------------------------------

MATCH = {
    "relu": lambda z: np.maximum(z, 0),
    "gelu": lambda z: z * special.ndtr(z),
    "silu": lambda z: z * special.expit(z),
}


def as_memory(made, kind: str, x: np.ndarray, normalised: bool = False) -> np.ndarray:
    """The output at one position, slot by slot: sum of values weighted by how well x matches their keys."""
    keys, values = (np.asarray(d.kernel.get_value(), np.float64) for d in (made.up, made.down))
    key_bias, out = np.asarray(made.up.bias.get_value()), np.array(made.down.bias.get_value(), np.float64)
    weights = [MATCH[kind](x @ keys[:, i] + key_bias[i]) for i in range(keys.shape[1])]
    weights = special.softmax(weights) if normalised else weights
    for i, weight in enumerate(weights):
        out = out + weight * values[i]
    return out


def check_memory(made, kind: str, normalised: bool = False) -> None:
    x = stream()
    out = np.asarray(made(x, context()))[0]
    for t in range(T):
        np.testing.assert_allclose(as_memory(made, kind, np.asarray(x[0, t]), normalised), out[t], atol=1e-5, rtol=1e-5)


def trained(made):
    """The layer after a few steps towards a random map."""
    structure, params = nnx.split(made)
    target = stream(5)

    def loss(params):
        return jnp.square(nnx.merge(structure, params)(stream(), context()) - target).mean()

    for _ in range(5):
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.jit(jax.grad(loss))(params))
    return nnx.merge(structure, params)


class TestFfnIsKeyValueMemory:
    claim = "ffn_is_key_value_memory"

    @pytest.mark.parametrize("kind", MATCH)
    def test_holds(self, kind):
        check_memory(layer(kind), kind)

    def test_holds_for_trained_weights(self):
        before = layer("gelu")
        after = trained(before)
        assert not np.allclose(before.up.kernel.get_value(), after.up.kernel.get_value(), atol=1e-4)
        check_memory(after, "gelu")

    def test_sabotage(self):
        with pytest.raises(AssertionError):
            check_memory(layer("gelu"), "gelu", normalised=True)
        with pytest.raises(AssertionError):
            check_memory(layer("gelu"), "relu")
