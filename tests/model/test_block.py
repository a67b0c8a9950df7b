"""The block algebra: every arrangement against the formula of its paper, written out in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tiny import LENGTH, label, named, tiny, tokens
from transformer.model import block as block_module
from transformer.model import build
from transformer.model.block import Sublayer
from transformer.model.context import Context
from transformer.model.masks import Mask
from transformer.model.normalization import PLACEMENTS
from transformer.model.positions import NoPosition
from transformer.schema import Gains

D = 16
RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, LENGTH, D)).astype(np.float32)
W = (RNG.normal(size=(D, D)) / 4).astype(np.float32)
# A different gain at each place, so that no two norms can be taken for each other.
NORM_GAIN = {place: RNG.uniform(0.5, 2, D).astype(np.float32) for place in ("in", "res", "out")}


class Branch(nnx.Module):
    """A stand-in for attention or the feed-forward network: tanh(x W)."""

    def __call__(self, x, context):
        return jnp.tanh(x @ W)


def f(x):
    return np.tanh(x @ W.astype(np.float64))


def norm(place):
    def apply(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * NORM_GAIN[place]

    return apply


before, on_branch, after = norm("in"), norm("res"), norm("out")

# placement -> (x, skip gain s, branch gain b) -> output
FORMULAS = {
    "pre": lambda x, s, b: s * x + b * f(before(x)),
    "post": lambda x, s, b: after(s * x + b * f(x)),
    "branch": lambda x, s, b: s * x + b * on_branch(f(x)),
    "sandwich": lambda x, s, b: s * x + b * on_branch(f(before(x))),
    "pre_post": lambda x, s, b: after(s * x + b * f(before(x))),
    "none": lambda x, s, b: s * x + b * f(x),
}


def make(placement: str, skip: float | str, branch: float | str) -> Sublayer:
    norms = {"model.norm.kind": "none"} if placement == "none" else {"model.norm.placement": placement}
    layer = Sublayer(Branch(), tiny(norms).model, Gains(skip, branch), "ffn")
    for place in ("in", "res", "out"):
        module = getattr(layer, f"{place}_norm")
        if module is not None:
            module.gain = nnx.Param(jnp.asarray(NORM_GAIN[place]))
    return layer


def context() -> Context:
    return Context(jnp.arange(LENGTH)[None], Mask(), NoPosition(tiny()))


def check_formula(placement: str, skip: float, branch: float, formula) -> None:
    made = make(placement, skip, branch)(jnp.asarray(X), context())
    np.testing.assert_allclose(made, formula(X.astype(np.float64), skip, branch), atol=2e-5, rtol=2e-5)


GAINS = [(1.0, 1.0), (0.0, 1.0), (1.0, 0.5), (1.7, 0.3)]


def test_every_placement_has_a_formula_here():
    assert set(PLACEMENTS) | {"none"} == set(FORMULAS)


@pytest.mark.parametrize(("skip", "branch"), GAINS)
@pytest.mark.parametrize("placement", FORMULAS)
def test_formula(placement, skip, branch):
    check_formula(placement, skip, branch, FORMULAS[placement])


@pytest.mark.parametrize("placement", FORMULAS)
def test_the_check_tells_all_arrangements_apart(placement):
    for other in FORMULAS.keys() - {placement}:
        with pytest.raises(AssertionError):
            check_formula(placement, 1.7, 0.3, FORMULAS[other])


def test_the_check_notices_a_gain_on_the_wrong_path(monkeypatch):
    real = block_module.scaled
    monkeypatch.setattr(block_module, "scaled", lambda x, gain: real(x, 1.0 if gain == 1.7 else gain))
    with pytest.raises(AssertionError):
        check_formula("pre", 1.7, 0.3, FORMULAS["pre"])


# --- No residual connection --------------------------------------------------------------------------------------


def test_skip_gain_zero_removes_the_residual():
    """Nothing of x arrives but through the branch: with a branch that says nothing, nothing at all."""
    silent = {
        f"model.residual.{part}.{gain}": 0.0 for part in ("attention", "ffn") for gain in ("skip_gain", "branch_gain")
    }
    model = build(tiny({**silent, "model.norm.final": "never"}))
    np.testing.assert_array_equal(model(tokens()), 0.0)


def check_absent(skip_gain: float) -> None:
    """Zero times infinity would be NaN: the path is absent, not multiplied away."""
    layer = make("none", skip_gain, 1.0)
    layer.branch = lambda x, context: jnp.ones_like(x)
    np.testing.assert_array_equal(layer(jnp.full((1, 1, D), jnp.inf), context()), 1.0)


def test_an_absent_path_is_no_operation():
    check_absent(0.0)
    with pytest.raises(AssertionError):
        check_absent(1e-30)


# --- ReZero ------------------------------------------------------------------------------------------------------

REZERO = {f"model.residual.{part}.branch_gain": "learned_zero" for part in ("attention", "ffn")}


def check_identity_blocks(overrides: dict) -> None:
    seen = {}

    def keep(name, x):
        seen[name] = x
        return x

    from transformer.model.taps import observing

    with observing(keep):
        build(tiny(overrides))(tokens())
    np.testing.assert_array_equal(seen["embedding"], seen["blocks.1.residual"])


def gradients(overrides: dict) -> dict[str, np.ndarray]:
    structure, params = nnx.split(build(tiny(overrides)))
    window = tokens(2, LENGTH + 1)

    def loss(params):
        log_p = jax.nn.log_softmax(nnx.merge(structure, params)(window[:, :-1]))
        return -jnp.take_along_axis(log_p, window[:, 1:, None], axis=-1).mean()

    return named(nnx.to_pure_dict(jax.grad(loss)(params)))


@pytest.mark.parametrize("placement", ["pre", "branch", "sandwich"])
def test_learned_zero_is_the_identity_at_first(placement):
    check_identity_blocks({**REZERO, "model.norm.placement": placement})


def test_the_check_notices_a_block_that_acts():
    with pytest.raises(AssertionError):
        check_identity_blocks({})
    with pytest.raises(AssertionError):
        check_identity_blocks({"model.residual.attention.branch_gain": "learned_zero"})


def test_learned_zero_learns_its_gain_first():
    grads = gradients(REZERO)
    gains = {name for name in grads if name.endswith("branch_gain.gain")}
    assert gains == {f"blocks.{i}.{part}.branch_gain.gain" for i in range(2) for part in ("attention", "ffn")}
    for name, g in grads.items():
        if name in gains:
            assert g.shape == () and g != 0, name
        elif name.startswith("blocks."):
            np.testing.assert_array_equal(g, 0.0, err_msg=name)  # opened only once the gain has moved


@pytest.mark.parametrize("overrides", [{}, {"model.ffn.kind": "none"}], ids=label)
def test_a_block_without_ffn_is_attention_only(overrides):
    from transformer.model.taps import capture

    _, seen = capture(build(tiny(overrides)))(tokens())
    same = np.array_equal(seen["blocks.0.residual_mid"], seen["blocks.0.residual"])
    assert same == bool(overrides)
