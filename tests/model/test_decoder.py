"""The model as a whole: logits, dropout, number formats, vocabulary."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tiny import VOCAB, declared, initial, logits, tiny, tokens
from transformer.model import build, data_seed, init_seed
from transformer.model.linear import dropout
from transformer.model.taps import capture


def test_logits_have_the_promised_shape_and_dtype():
    for dtype in ("float32", "bfloat16"):
        out = jax.eval_shape(build(tiny({"numerics.compute_dtype": dtype})), tokens())
        assert out.shape == (2, 8, VOCAB) and out.dtype == jnp.float32


def test_jit_agrees_with_eager():
    model = build(tiny({"model.num_layers": 1}))
    np.testing.assert_allclose(jax.jit(lambda x: model(x))(tokens()), model(tokens()), atol=1e-5, rtol=1e-5)


def test_rows_of_a_batch_do_not_mix():
    model, window, other = build(tiny()), tokens(), tokens(seed=1)
    mixed = model(np.stack([window[0], other[1]]))
    np.testing.assert_array_equal(mixed[0], model(window)[0])
    np.testing.assert_array_equal(mixed[1], model(other)[1])


def test_tied_logits_are_inner_products_with_the_embedding():
    for tie, name in ((True, "embedding.table"), (False, "unembedding.kernel")):
        config = tiny({"model.embedding.tie": tie})
        out, seen = capture(build(config), "final")(tokens())
        matrix = initial(config)[name]
        np.testing.assert_allclose(out, seen["final"] @ (matrix.T if tie else matrix), atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("table", ["embedding", "token_types"])
def test_gradients_of_16_bit_states_are_summed_in_float32(table, dtype):
    config = tiny({"model.embedding.token_types": 2, "numerics.param_dtype": dtype})
    structure, params = nnx.split(getattr(build(config), table))
    rows_BT, zeros_BTD = jnp.zeros((1, 3000), jnp.int32), jnp.zeros((1, 3000, 16), jnp.bfloat16)

    def total(params):
        module = nnx.merge(structure, params)
        out = module(rows_BT, jnp.bfloat16) if table == "embedding" else module(zeros_BTD, rows_BT)
        return out.astype(jnp.float32).sum()

    (summed,) = set(jax.grad(total)(params).table[...][0].tolist())
    assert summed == pytest.approx(3000, rel=0.01)  # bfloat16 stops counting at 256


@pytest.mark.parametrize(("scale", "factor"), [(1.0, 1.0), (0.0, math.sqrt(16)), (2.0, 2.0)])
def test_embedding_scale(scale, factor):
    config = tiny({"model.embedding.scale": scale})
    _, seen = capture(build(config), "embedding")(tokens())
    np.testing.assert_allclose(seen["embedding"], initial(config)["embedding.table"][tokens()] * factor, rtol=1e-6)


def test_the_vocabulary_is_the_datas_unless_the_config_says_otherwise():
    free = {"model.vocab_size": 0}
    assert build(tiny(free)).embedding.table.shape == (260, 16)  # bytes and four special tokens
    assert build(tiny(free), vocab_size=65).embedding.table.shape == (65, 16)
    assert build(tiny({"model.vocab_size": 70}), vocab_size=65).embedding.table.shape == (70, 16)


def test_seeds_follow_seed_unless_given():
    assert [f(tiny({"seed": 5})) for f in (init_seed, data_seed)] == [5, 5]
    assert [f(tiny({"seed": 5, "init_seed": 0})) for f in (init_seed, data_seed)] == [0, 5]
    assert [f(tiny({"seed": 5, "data_seed": 0})) for f in (init_seed, data_seed)] == [5, 0]


def test_no_layers_is_a_bigram_model():
    config = tiny({"model.num_layers": 0, "model.norm.final": "never"})
    table = initial(config)["embedding.table"]
    np.testing.assert_allclose(logits(config), table[tokens()] @ table.T, atol=1e-5)
    assert set(declared(config)) == {"embedding.table"}


# --- Dropout -----------------------------------------------------------------------------------------------------

DROPPING = {"model.dropout": 0.5}


def test_dropout_needs_a_key():
    np.testing.assert_array_equal(logits(tiny(DROPPING)), logits(tiny()))
    np.testing.assert_array_equal(logits(tiny(), dropout_key=jax.random.key(0)), logits(tiny()))


def test_dropout_depends_on_the_key_alone():
    config = tiny(DROPPING)
    first = logits(config, dropout_key=jax.random.key(0))
    np.testing.assert_array_equal(first, logits(config, dropout_key=jax.random.key(0)))
    assert not np.allclose(first, logits(config, dropout_key=jax.random.key(1)), atol=1e-2)
    assert not np.allclose(first, logits(config), atol=1e-2)


def test_every_place_drops_something_else():
    _, seen = capture(build(tiny(DROPPING)))(tokens(), dropout_key=jax.random.key(0))
    dropped = {
        name: (np.asarray(x) == 0).tobytes() for name, x in seen.items() if name.endswith((".output", "embedding"))
    }
    assert len(dropped) == 5 and len(set(dropped.values())) == 5


def test_dropout_keeps_the_mean():
    x = jnp.full((200, 200), 3.0)
    for rate in (0.1, 0.5, 0.9):
        y = np.asarray(dropout(x, rate, jax.random.key(0)))
        error = math.sqrt(rate * (1 - rate)) / 200  # of the share of zeros, one standard deviation
        assert abs((y == 0).mean() - rate) < 4 * error
        np.testing.assert_allclose(y[y != 0], 3.0 / (1 - rate), rtol=1e-5)
        assert abs(y.mean() - 3.0) < 4 * 3.0 * error / (1 - rate)
