"""Claims about the number of heads that are pure arithmetic: parameters and multiplications."""

from __future__ import annotations

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from transformer import Config, build, replace
from transformer.model import declare

D, T = 32, 8
HEADS = (1, 2, 4, 8, 16)
SIZES = {"model.d_model": D, "model.num_layers": 2, "data.sequence_length": T}


def config(heads: int, **fixed: int) -> Config:
    overrides = {f"model.attention.{name}": value for name, value in fixed.items()}
    return replace(Config(), {**SIZES, "model.attention.num_heads": heads, **overrides})


def parameters(config: Config) -> int:
    state = nnx.state(declare(config, 11), nnx.Param)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.to_pure_dict(state)))


def operations(jaxpr) -> Iterator:
    """Every primitive of a traced program, inner programs included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in equation.params.values():
            if hasattr(inner, "jaxpr"):
                yield from operations(inner.jaxpr)


def counted(config: Config) -> tuple[int, int]:
    """Multiplications in matrix products, and scores that pass through a softmax, of one forward pass."""
    model = build(config, 11)
    traced = list(operations(jax.make_jaxpr(model)(jnp.zeros((1, T), jnp.int32)).jaxpr))
    products = 0
    for equation in (e for e in traced if e.primitive.name == "dot_general"):
        (contracted, _), _ = equation.params["dimension_numbers"]
        summed = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        products += math.prod(equation.outvars[0].aval.shape) * summed
    softmaxed = sum(math.prod(e.outvars[0].aval.shape) for e in traced if e.primitive.name == "exp")
    return products, softmaxed


def check_parity(**fixed: int) -> None:
    assert len({parameters(config(heads, **fixed)) for heads in HEADS}) == 1
    assert len({counted(config(heads, **fixed))[0] for heads in HEADS}) == 1
    assert [counted(config(heads, **fixed))[1] for heads in HEADS] == [2 * heads * T * T for heads in HEADS]


class TestParity:
    claim = "mha_param_parity"

    def test_holds(self):
        check_parity()
        # Six products a layer, and the logits: the count is that of the formula.
        assert counted(config(4))[0] == 2 * (4 * T * D * D + 2 * T * T * D + 8 * T * D * D) + T * D * 11

    def test_sabotage(self):
        with pytest.raises(AssertionError):
            check_parity(head_dim=8)


def check_every_head_adds(**fixed: int) -> None:
    """Each further head adds the same positive number of parameters and multiplications."""
    for count in (parameters, lambda c: counted(c)[0]):
        numbers = [count(config(heads, **fixed)) for heads in HEADS]
        per_head = [(b - a) / (m - n) for a, b, n, m in zip(numbers, numbers[1:], HEADS, HEADS[1:], strict=False)]
        assert per_head[0] > 0 and len(set(per_head)) == 1


class TestMoreHeadsAddParameters:
    claim = "more_heads_add_params"

    def test_refuted(self):
        """At fixed model width heads only divide what is there."""
        with pytest.raises(AssertionError):
            check_every_head_adds()

    def test_sabotage(self):
        check_every_head_adds(head_dim=8)  # at fixed head width the claim is true, and the check can tell
