"""Operations are counted by the stated rule, for any program, and as the compiler counts them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax._src.cudnn import fused_attention_stablehlo
from jax.extend.core import Primitive

from tests.tiny import called, label, nested, one_switch
from transformer.analysis import accounting, flops
from transformer.analysis.flops import Operations, count
from transformer.config import resolve
from transformer.model import declare, split
from transformer.model.initialization import abstract, path_name
from transformer.schema import Config

B, M, K, N = 3, 5, 7, 11


def shape(*sizes: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


# --- The rule, operation by operation ----------------------------------------------------------------------------

RULE: list[tuple[Any, list[Any], Operations]] = [
    (lambda a, b: a @ b, [shape(M, K), shape(K, N)], Operations(products=2 * M * K * N)),
    (lambda a, b: jnp.einsum("bmk,bkn->bmn", a, b), [shape(B, M, K), shape(B, K, N)], Operations(2 * B * M * K * N)),
    (lambda a, b: jnp.einsum("mkb,nk->bmn", a, b), [shape(M, K, B), shape(N, K)], Operations(2 * B * M * K * N)),
    (
        lambda x, w: jax.lax.conv_general_dilated(x, w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")),
        [shape(B, M, K), shape(3, K, N)],
        Operations(2 * B * M * N * 3 * K),
    ),
    (
        lambda x, w: jax.lax.conv_general_dilated(
            x, w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=K
        ),
        [shape(B, M, K), shape(3, 1, K)],
        Operations(2 * B * M * K * 3),
    ),
    (lambda x: x + x * 2, [shape(M)], Operations(elementwise=2 * M)),
    (lambda x: jax.lax.integer_pow(x, 5), [shape(M)], Operations(elementwise=3 * M)),
    (lambda x: jnp.exp(x), [shape(M)], Operations(transcendental=M)),
    (lambda x: x.sum(axis=0), [shape(M, K)], Operations(elementwise=M * K)),
    (lambda x: x.max(axis=0), [shape(M, K)], Operations(elementwise=M * K)),
    (lambda x: x.T.reshape(-1)[::2], [shape(M, K)], Operations()),
    (lambda x, y: jnp.where(x < y, x, y), [shape(M), shape(M)], Operations()),
    (lambda i: i * 2 + 1, [shape(M, dtype="int32")], Operations()),
    (lambda x, i: x.at[i].add(1.0), [shape(M, K), shape(N, dtype="int32")], Operations(elementwise=N * K)),
]


@pytest.mark.parametrize(("function", "arguments", "expected"), RULE)
def test_the_rule(function, arguments, expected):
    assert count(function, *arguments) == expected


PRODUCT = 2 * M * M * M


def _scan(x):
    return jax.lax.scan(lambda carry, _: (carry @ carry, None), x, length=4)[0]


def _conditional(x):
    return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)


@jax.custom_vjp
def _twice(x):
    return x @ x


_twice.defvjp(lambda x: (_twice(x), x), lambda x, g: (g @ x + x @ g + x @ x @ x,))


@pytest.mark.parametrize(
    ("function", "products"),
    [
        (_scan, 4),
        (_conditional, 2),
        (lambda x: jax.lax.fori_loop(0, 3, lambda i, x: x @ x, x), 3),
        (lambda x: jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ x, x), 1),
        (jax.jit(lambda x: x @ x), 1),
        (_twice, 1),
        (jax.grad(lambda x: _twice(x).sum()), 4),
        (jax.grad(lambda x: jnp.sum(jnp.sin(x @ x))), 3),
        (jax.value_and_grad(jax.checkpoint(lambda x: jnp.sum(jnp.sin(jnp.sin(x @ x) @ x)))), 2 + 2 + 4),
    ],
    ids=["scan", "cond", "fori", "while", "jit", "custom_vjp", "custom_vjp_grad", "grad", "remat"],
)
def test_bodies_are_multiplied_out(function, products):
    assert count(function, shape(M, M)).products == products * PRODUCT


def test_what_is_dropped_is_free():
    def wasteful(x):
        _dropped, also = jax.jit(lambda x: (jnp.exp(x @ x), x + 1))(x)
        return also

    assert count(wasteful, shape(M, M)) == Operations(elementwise=M * M)


def test_a_batch_of_functions_costs_that_many():
    one = count(lambda x: jnp.tanh(x @ x), shape(M, M))
    assert count(jax.vmap(lambda x: jnp.tanh(x @ x)), shape(B, M, M)) == one * B


def test_a_kernel_that_cannot_be_looked_into_is_named():
    def foreign(x):
        return jax.pure_callback(lambda x: x, shape(M), x)

    assert count(foreign, shape(M)).opaque == {"pure_callback"}


@pytest.mark.parametrize(("name", "products"), [("fwd", 2), ("bwd", 4)])
def test_the_kernel_of_cudnn_counts_as_written_out(name, products):
    theirs = getattr(fused_attention_stablehlo, f"_dot_product_attention_{name}_p_wrapper")
    kernel = Primitive(theirs.name)  # the one of JAX needs a GPU to tell its shapes
    kernel.def_abstract_eval(lambda query, key: query)
    B, T, S, H, K = 2, 5, 7, 3, 4
    found = count(kernel.bind, shape(B, T, H, K), shape(B, S, H, K))
    assert found == Operations(products=products * 2 * B * H * T * S * K)


# --- The model ---------------------------------------------------------------------------------------------------

# Wide enough for products to outweigh what the two counts treat differently.
SIZES = {
    "model.d_model": 64,
    "model.num_layers": 2,
    "model.attention.num_heads": 2,
    "model.vocab_size": 61,
    "data.sequence_length": 32,
    "train.batch_size": 2,
    "train.steps": 8,
    "optimizer.warmup_steps": 2,
}
SWITCHES = [overrides for overrides in one_switch("model.") if not any("init" in path for path in overrides)]


def sized(**overrides: Any):
    return resolve(nested({**SIZES, **overrides}))


def matrix_weights(params) -> int:
    """Weights of kernels, the tied embedding once more as the map to logits."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum(x.size for path, x in leaves if path_name(path).endswith(("kernel", "embedding.table")))


def test_the_plain_model_costs_what_the_textbook_says():
    """2N and 6N per token, N the weights of products, plus scores and mixing; exactly."""
    program = accounting.make_program(sized())
    config, n = program.config, matrix_weights(program.abstract_state.params)
    layers, width, length = config.model.num_layers, config.model.d_model, config.data.sequence_length
    assert accounting.forward_operations(program).products == 2 * n + 4 * layers * length * width
    assert accounting.train_operations(program).products == 6 * n + 12 * layers * length * width
    assert accounting.train_flops_per_token(config) == 6 * n + 12 * layers * length * width


def compiled(function, *arguments) -> Operations:
    """What the compiler counts in its own program."""
    analysis = jax.jit(function).lower(*arguments).compile().cost_analysis()
    return Operations(elementwise=analysis["flops"], transcendental=analysis["transcendentals"])


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"model.attention.num_kv_heads": 1, "model.attention.value_dim": 48, "model.ffn.kind": "swiglu"},
        {"model.position.kind": "alibi", "model.norm.kind": "rmsnorm", "model.embedding.tie": False},
    ],
    ids=label,
)
def test_a_training_step_costs_what_the_compiler_counts(overrides):
    program = accounting.make_program(sized(**overrides))
    hyper = jax.eval_shape(lambda: program.hyperparameters(program.config))
    arguments = (program.abstract_state, program.abstract_batch, shape(dtype="int32"), hyper)
    ours, theirs = count(program.train_step, *arguments), compiled(program.train_step, *arguments)
    assert ours.products + ours.elementwise == pytest.approx(theirs.elementwise, rel=0.05)
    assert ours.transcendental == pytest.approx(theirs.transcendental, rel=0.05)


def check_costs(config: Config) -> None:
    """Forward, in the program as it is handed to the compiler, which counts a loop once; nothing in it is opaque, and
    every parameter belongs to a component."""
    structure, params, state = split(declare(config))
    params = abstract(params, config)

    def forward(params, tokens):
        return called(nnx.merge(structure, params, nnx.to_pure_dict(state)), config)(tokens)

    arguments = (params, shape(2, 32, dtype="int32"))
    ours = count(forward, *arguments)
    lowered = jax.jit(forward).lower(*arguments)
    theirs = lowered.cost_analysis()["flops"]
    assert not ours.opaque
    if "stablehlo.while" in lowered.as_text():
        assert ours.products + ours.elementwise >= 0.95 * theirs
    else:
        assert ours.products + ours.elementwise == pytest.approx(theirs, rel=0.05)

    components = accounting.parameters_by_component(params)
    assert sum(components.values()) == sum(x.size for x in jax.tree.leaves(params))
    assert not components.keys() & {"blocks", "encoder", "decoder"}


@pytest.mark.parametrize("overrides", SWITCHES, ids=label)
def test_every_variant_costs_what_the_compiler_counts(overrides):
    check_costs(sized(**overrides))


def test_the_check_notices_an_operation_that_is_not_counted(monkeypatch):
    monkeypatch.setitem(flops.RULES, "dot_general", lambda equation: Operations())
    with pytest.raises(AssertionError):
        check_costs(sized())
