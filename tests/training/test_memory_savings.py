"""What saves memory changes no number: recomputation, logits in chunks, the donated state; and what stays float32."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tiny import BATCH, LENGTH, VOCAB, named, tiny
from transformer.analysis.memory import saved_bytes
from transformer.data.batch import Batch
from transformer.errors import ConfigError
from transformer.model.remat import REMATS
from transformer.training.optimizer import Hyperparameters
from transformer.training.step import Program

TOKENS = np.random.default_rng(0).integers(0, VOCAB, (BATCH, LENGTH + 1)).astype(np.int32)
HYPER = Hyperparameters(jnp.float32(0.01), jnp.float32(0.1), jnp.uint32(0), jnp.uint32(0))


def program(**overrides) -> Program:
    return Program(tiny({k.replace("__", "."): v for k, v in overrides.items()}), VOCAB, np.ones(VOCAB, np.int32))


def loss_and_gradient(made: Program):
    state = made.init(0)
    of = jax.jit(jax.value_and_grad(made.mean_loss, has_aux=True))
    (loss, (_, _, model_state)), grads = of(state.params, state.model_state, Batch(TOKENS), jax.random.key(1))
    return float(loss), {**named(grads), **{f"state.{k}": v for k, v in named(model_state).items()}}


def check_same(made: Program, other: Program) -> None:
    (loss, grads), (expected, wanted) = loss_and_gradient(made), loss_and_gradient(other)
    assert loss == pytest.approx(expected, abs=1e-6)
    assert grads.keys() == wanted.keys()
    for name, leaf in grads.items():
        np.testing.assert_allclose(leaf, wanted[name], rtol=1e-4, atol=1e-6, err_msg=name)


# --- Recomputation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in REMATS if kind != "none"])
def test_recomputing_changes_neither_loss_nor_gradient_nor_statistics(kind):
    """With dropout, whose masks must be drawn alike twice, and running statistics, which must be updated once."""
    base = {"model__dropout": 0.2, "model__norm__kind": "batchnorm", "model__num_layers": 1}
    check_same(program(train__remat=kind, **base), program(**base))


def test_each_kind_keeps_less_than_the_one_before():
    """By trace: what autodiff keeps. Schedulers differ in what they make of it; that of XLA for CPUs makes nothing."""
    kept = [saved_bytes(program(train__remat=kind)) for kind in ("none", "dots", "block")]
    assert kept[0] > 1.2 * kept[1] > 1.2 * kept[2]


def test_evaluation_and_generation_do_not_recompute():
    made = program(train__remat="block")
    text = str(jax.make_jaxpr(made.evaluate_batch)(made.init(0), Batch(TOKENS)))
    assert "remat" not in text and "checkpoint" not in text


# --- Microbatches ------------------------------------------------------------------------------------------------


def test_more_microbatches_need_no_more_memory():
    """One gradient is held beside the sum of those before it, however many there are."""
    temporary = []
    for parts in (2, 8):
        made = program(train__accumulate=parts, train__batch_size=8, model__vocab_size=8192, model__num_layers=1)
        batch = made.layout.abstract_batch(2 * parts)
        step = jax.jit(made.train_step).lower(made.abstract_state, batch, jnp.int32(0), HYPER).compile()
        temporary.append(step.memory_analysis().temp_size_in_bytes)
    assert temporary[1] < 1.05 * temporary[0]


# --- Logits in chunks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("chunk", "tie"), [(5, True), (16, False), (1000, True)])
def test_chunks_change_neither_loss_nor_gradient(chunk, tie):
    """5 does not divide the 32 tokens of a batch."""
    base = {"objective__label_smoothing": 0.1, "model__embedding__tie": tie, "model__num_layers": 1}
    check_same(program(objective__logits_chunk=chunk, **base), program(**base))


def test_evaluation_in_chunks_gives_the_same_sums():
    made, whole = program(objective__logits_chunk=7), program()
    batch = Batch(TOKENS, weights_BL=(TOKENS % 2).astype(np.float32))
    found = [jax.jit(each.evaluate_batch)(each.init(0), batch) for each in (made, whole)]
    for mine, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5)


def test_the_whole_array_of_logits_is_never_made():
    """It is in the program without chunks, and the compiler needs less memory with them."""
    temporary = []
    for chunk in (0, 4):
        made = program(objective__logits_chunk=chunk, model__vocab_size=4096, model__num_layers=1)
        state, batch = made.abstract_state, made.abstract_prepared
        gradient = jax.jit(jax.grad(made.mean_loss, has_aux=True))
        compiled = gradient.lower(state.params, state.model_state, batch, jax.random.key(0)).compile()
        temporary.append(compiled.memory_analysis().temp_size_in_bytes)
        logits = f"f32[{BATCH},{LENGTH},4096]", f"f32[{BATCH * LENGTH},4096]"
        assert any(shape in compiled.as_text() for shape in logits) is (chunk == 0)
    assert temporary[1] < 0.75 * temporary[0]


def test_chunks_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match=r"objective\.logits_chunk=4 goes with model\.head\.kind=lm only"):
        program(objective__logits_chunk=4, model__head__kind="mlm")
    with pytest.raises(ConfigError, match=r"objective\.logits_chunk=-1 must not be negative"):
        program(objective__logits_chunk=-1)


# --- The state ---------------------------------------------------------------------------------------------------


def lowered(made: Program):
    return made.train_steps.lower(*_arguments(made))


def test_the_state_is_updated_in_place():
    """All its bytes are aliased to the output: no second copy of parameters and moments exists."""
    made = program(model__num_layers=1)
    aliased = lowered(made).compile().memory_analysis().alias_size_in_bytes
    assert aliased >= sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(made.abstract_state))
    kept = jax.jit(made._train_steps).lower(*_arguments(made)).compile().memory_analysis().alias_size_in_bytes
    assert kept < aliased  # without donation it would show


def _arguments(made: Program):
    chunk = jax.ShapeDtypeStruct((made.max_steps_per_call, BATCH, LENGTH + 1), jnp.int32)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    return made.abstract_state, None, chunk, step, step, HYPER


# --- bfloat16 ----------------------------------------------------------------------------------------------------


def test_bfloat16_multiplies_and_float32_keeps_and_normalises():
    """Products of activations are in bfloat16; parameters, moments, norms, softmax and the loss stay float32."""
    made = program(numerics__compute_dtype="bfloat16", model__ffn__kind="relu")  # the only exponentials: softmax
    state = made.abstract_state
    assert {x.dtype for x in jax.tree.leaves((state.params, state.optimizer)) if x.ndim} == {jnp.dtype("float32")}
    text = lowered(made).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products and sum("bf16" in line for line in products) > 0.9 * len(products)
    for operation in ("rsqrt", "exponential", "sqrt"):
        lines = [line for line in text.splitlines() if re.search(rf"stablehlo\.{operation}\b", line)]
        assert lines and not any("bf16" in line for line in lines), operation
    gradients = jax.eval_shape(jax.grad(made.mean_loss, has_aux=True), *_gradient_arguments(made))[0]
    assert {x.dtype for x in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}


def _gradient_arguments(made: Program):
    state = made.abstract_state
    return state.params, nnx.to_pure_dict(made.declared_state), made.abstract_prepared, jax.random.key(0)
