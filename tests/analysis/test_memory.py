"""Bytes by formula equal the bytes of real trees; what the backward pass keeps grows as it should."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.tiny import BATCH, tiny
from transformer.analysis import accounting, memory
from transformer.model.attention_halves import SHARE_OF_SCORES


@pytest.mark.parametrize(("policy", "dtypes"), [("float32", ("float32",) * 3), ("half", ("bfloat16",) * 3)])
def test_training_state_is_that_of_the_optimizer(policy, dtypes):
    params = {"kernel": jax.ShapeDtypeStruct((30, 7), dtypes[0])}
    moments = jax.eval_shape(optax.scale_by_adam().init, params)
    counted = memory.training_state_bytes(210, policy)
    assert counted["weights"] == counted["gradients"] == memory.state_bytes(params)
    assert counted["optimizer"] == memory.state_bytes((moments.mu, moments.nu))


def test_mixed_precision_takes_sixteen_bytes():
    assert memory.POLICIES["mixed"].total == memory.POLICIES["float32"].total == 16
    assert sum(memory.training_state_bytes(10, "mixed").values()) == 160


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_the_cache_formula_is_that_of_the_tree(kv_heads):
    config = tiny(
        {
            "model.attention.num_heads": 4,
            "model.attention.num_kv_heads": kv_heads,
            "model.attention.value_dim": 6,
        }
    )
    program = accounting.make_program(config)
    cache = jax.eval_shape(lambda: program.model(program.init(0)).empty_cache(3, 8))
    arrays = memory.state_bytes([x for x in jax.tree.leaves(cache) if jnp.issubdtype(x.dtype, jnp.floating)])
    assert arrays == memory.kv_cache_bytes(2, 8, kv_heads, 4, 6, itemsize=4, batch=3)
    assert memory.cache_bytes(program, 8, 3) == memory.state_bytes(cache)


def test_the_longest_context_fits_and_one_more_does_not():
    budget = 10_000
    tokens = memory.longest_context(budget, 2, 1, 8)
    assert memory.kv_cache_bytes(2, tokens, 1, 8) <= budget < memory.kv_cache_bytes(2, tokens + 1, 1, 8)


def kept(**overrides: object) -> int:
    return memory.saved_bytes(accounting.make_program(tiny(overrides)))


def exponent(sizes: list[int], counts: list[int]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(counts), 1)[0])


def test_what_is_kept_grows_with_batch_layers_and_the_square_of_length():
    assert kept(**{"train.batch_size": 8}) == pytest.approx(2 * kept(**{"train.batch_size": 4}), rel=0.01)
    by_depth = [kept(**{"model.num_layers": n, "model.d_model": 32}) for n in (2, 4, 6)]
    assert by_depth[2] - by_depth[1] == by_depth[1] - by_depth[0] > 0
    lengths = [4096, 8192, 16384]  # nothing is allocated
    assert exponent(lengths, [kept(**{"data.sequence_length": n}) for n in lengths]) == pytest.approx(2, abs=0.1)
    none = {"model.layers": "ffn"}
    flat = [kept(**{"data.sequence_length": n, **none}) for n in lengths]
    assert exponent(lengths, flat) == pytest.approx(1, abs=0.1)


def test_microbatches_keep_less():
    assert kept(**{"train.accumulate": 4}) == pytest.approx(kept() / 4, rel=0.05)


def needed_by_the_compiler(program) -> int:
    """Temporary bytes of a compiled training step."""
    hyper = jax.eval_shape(lambda: program.hyperparameters(program.config))
    step = jax.ShapeDtypeStruct((), "int32")
    lowered = jax.jit(program.train_step).lower(program.abstract_state, program.abstract_batch, step, hyper)
    return lowered.compile().memory_analysis().temp_size_in_bytes


def test_what_is_kept_grows_as_what_the_compiler_needs():
    """Within half, and with the same exponents of length, depth and batch within 0.1."""
    sizes = {"model.num_layers": 6, "data.sequence_length": 2048, "train.batch_size": 2}  # only compiled
    counts = {}
    for doubled in (None, "data.sequence_length", "model.num_layers", "train.batch_size"):
        more = {doubled: 2 * sizes[doubled]} if doubled else {}
        program = accounting.make_program(tiny({**sizes, **more}))
        counts[doubled] = np.array([memory.saved_bytes(program), needed_by_the_compiler(program)])
    ours, theirs = counts.pop(None)
    assert ours == pytest.approx(theirs, rel=0.5)
    for doubled, both in counts.items():
        powers = np.log2(both / np.array([ours, theirs]))
        assert powers[0] == pytest.approx(powers[1], abs=0.1), doubled


def test_what_is_the_same_in_every_step_is_not_kept():
    """Of attention: queries, keys and values, their layer's input and output, and one matrix of weights for each head,
    but neither the mask nor the zeros that its gradient is filled with. On a CPU a quarter of the weights is skipped.
    """
    length = 2048
    attention = kept(**{"data.sequence_length": length}) - kept(
        **{"data.sequence_length": length, "model.layers": "ffn"}
    )
    matrices = memory.attention_matrix_bytes(length, heads=2, layers=2, itemsize=4) * BATCH
    assert attention == pytest.approx(SHARE_OF_SCORES * matrices, rel=0.05)


@pytest.mark.parametrize(("width", "length"), [(64, 128), (64, 1024)])
def test_the_rough_count_is_within_a_half(width, length):
    config = tiny({"model.d_model": width, "data.sequence_length": length})
    rough = memory.activation_bytes(config, 11)
    assert rough == pytest.approx(memory.saved_bytes(accounting.make_program(config)), rel=0.5)


def test_score_matrices():
    assert memory.attention_matrix_bytes(1000, heads=3, layers=2, itemsize=4) == math.prod((2, 3, 1000, 1000, 4))
