"""The compiled step: what one call does, what it may depend on, and the first numbers it has always given."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import BATCH, LENGTH, VOCAB, named, tiny
from transformer.data.batch import Batch
from transformer.data.batching import windows
from transformer.training import step as step_module
from transformer.training.schedules import unit_schedule
from transformer.training.step import METRICS, Program, TrainState, flat_state, unflat_state

STREAM_FILE = Path(__file__).resolve().parents[1] / "data" / "stream.bin"
STREAM = np.fromfile(STREAM_FILE, np.uint8)
STEPS = 8
ONE_LAYER = {"model.num_layers": 1}  # compiles in half the time
BYTES_PER_TOKEN = np.arange(VOCAB, dtype=np.int32) % 3


def markov_stream(length: int = 4096, key: int = 7) -> np.ndarray:
    """An order-1 Markov chain over VOCAB symbols, from raw Philox bits: the same on every NumPy."""
    bits = np.random.Philox(key=key)
    transition = ((bits.random_raw(VOCAB * VOCAB) >> np.uint64(11)) * 2.0**-53).reshape(VOCAB, VOCAB) ** 6
    cumulative = np.cumsum(transition / transition.sum(axis=1, keepdims=True), axis=1)
    stream = np.zeros(length, np.uint8)
    for i, u in enumerate((bits.random_raw(length - 1) >> np.uint64(11)) * 2.0**-53):
        stream[i + 1] = min(np.searchsorted(cumulative[stream[i]], u), VOCAB - 1)
    return stream


class Counting(Program):
    """A program that counts how often its loop over steps is traced: once per compilation."""

    def __init__(self, overrides: dict[str, Any] | None = None):
        super().__init__(tiny({**ONE_LAYER, **(overrides or {})}), VOCAB, BYTES_PER_TOKEN)
        self.traces = 0

    def _train_steps(self, *args):
        self.traces += 1
        return super()._train_steps(*args)


def starts(step: int) -> np.ndarray:
    """The windows of one step, a pure function of the step."""
    return (np.arange(BATCH) * 613 + step * 89).astype(np.int32) % (len(STREAM) - LENGTH)


def chunk(first: int, num_steps: int, size: int = STEPS, rows: Callable[[int], np.ndarray] = starts) -> np.ndarray:
    """Starts of `num_steps` steps, padded to the size the program was compiled for."""
    full = np.zeros((size, BATCH), np.int32)
    for i in range(num_steps):
        full[i] = rows(first + i)
    return full


def train(
    program: Program,
    num_steps: int = STEPS,
    per_call: int = STEPS,
    seed: int = 0,
    stuck_at: int | None = None,
    rows: Callable[[int], np.ndarray] = starts,
    **inputs: float,
) -> tuple[TrainState, dict[str, np.ndarray]]:
    """Trains in calls of `per_call` steps; `stuck_at` passes a constant first step, as a broken loop would."""
    hyper = program.hyperparameters(program.config)
    hyper = hyper._replace(**{k: jnp.asarray(v, getattr(hyper, k).dtype) for k, v in inputs.items()})
    state, corpus, calls = program.init(seed), jnp.asarray(STREAM), []
    for first in range(0, num_steps, per_call):
        n = min(per_call, num_steps - first)
        step = jnp.int32(first if stuck_at is None else stuck_at)
        state, metrics = program.train_steps(state, corpus, chunk(first, n, rows=rows), step, jnp.int32(n), hyper)
        calls.append({name: np.asarray(metrics[name])[:n] for name in METRICS})
    return state, {name: np.concatenate([call[name] for call in calls]) for name in METRICS}


def arrays(state: TrainState) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in flat_state(state).items()}


def check_identical(a: TrainState, b: TrainState) -> None:
    left, right = arrays(a), arrays(b)
    assert left.keys() == right.keys()
    assert not [name for name in left if left[name].tobytes() != right[name].tobytes()]


@pytest.fixture(scope="module")
def program() -> Counting:
    return Counting()


@pytest.fixture(scope="module")
def trained(program) -> tuple[TrainState, dict[str, np.ndarray]]:
    return train(program)


# --- Golden numbers ----------------------------------------------------------------------------------------------

GOLDEN_LOSSES = [3.037496, 3.0044386, 2.3411837, 2.2015905, 2.0713122, 2.0011256, 2.1224244, 2.2578897]
GOLDEN_PARAM_NORM = 16.893045


def check_golden(metrics: dict[str, np.ndarray]) -> None:
    message = (
        "The first steps of the tiny model changed. If that was meant (model, initial weights, optimizer or "
        "schedule), put the new numbers here and say in the commit that older runs can no longer be repeated; "
        f"if not, find out why. Now: {[round(float(x), 6) for x in metrics['loss']]}, "
        f"param_norm {metrics['param_norm'][-1]:.6f}"
    )
    np.testing.assert_allclose(metrics["loss"], GOLDEN_LOSSES, rtol=1e-5, err_msg=message)
    np.testing.assert_allclose(metrics["param_norm"][-1], GOLDEN_PARAM_NORM, rtol=1e-5, err_msg=message)


def test_the_stream_is_what_the_lines_above_generate():
    np.testing.assert_array_equal(STREAM, markov_stream())
    assert len(STREAM) == 4096 and STREAM.max() == VOCAB - 1


def test_golden_first_steps(trained):
    check_golden(trained[1])


def test_the_check_notices_a_small_change(program):
    for small in ({"learning_rate": 0.01001}, {"weight_decay": 0.11}, {"seed": 1}):
        with pytest.raises(AssertionError, match="older runs can no longer be repeated"):
            check_golden(train(program, **small)[1])


def test_it_learns(trained):
    losses = trained[1]["loss"]
    assert losses[-1] < losses[0] - 0.3


# --- Calls and steps ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_call", [1, 3])
def test_many_steps_in_one_call_equal_single_calls_bit_for_bit(program, trained, per_call):
    state, metrics = train(program, per_call=per_call)
    check_identical(state, trained[0])
    for name in METRICS:
        np.testing.assert_array_equal(metrics[name], trained[1][name])


def test_the_check_notices_steps_that_do_not_advance(program, trained):
    with pytest.raises(AssertionError):
        check_identical(train(program, per_call=1, stuck_at=0)[0], trained[0])


def test_the_size_of_a_call_changes_no_number(trained):
    other = Counting({"train.steps_per_call": 3})
    assert other.max_steps_per_call == 3
    hyper, state = other.hyperparameters(other.config), other.init(0)
    for first, n in ((0, 3), (3, 3), (6, 2)):
        state, _ = other.train_steps(
            state, jnp.asarray(STREAM), chunk(first, n, 3), jnp.int32(first), jnp.int32(n), hyper
        )
    check_identical(state, trained[0])


def test_a_call_of_no_steps_changes_nothing(program):
    hyper = program.hyperparameters(program.config)
    state, _ = program.train_steps(program.init(0), jnp.asarray(STREAM), chunk(0, 0), jnp.int32(0), jnp.int32(0), hyper)
    check_identical(state, program.init(0))


def test_windows_from_the_host_give_the_same_numbers(trained):
    other = Counting()
    cut = np.stack([[STREAM[s : s + LENGTH + 1] for s in starts(step)] for step in range(STEPS)])
    hyper = other.hyperparameters(other.config)
    state, metrics = other.train_steps(other.init(0), None, cut, jnp.int32(0), jnp.int32(STEPS), hyper)
    np.testing.assert_allclose(metrics["loss"], trained[1]["loss"], rtol=1e-6)
    for name, x in arrays(state).items():
        np.testing.assert_allclose(x, arrays(trained[0])[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_windows_are_slices():
    at = np.array([0, 5, len(STREAM) - LENGTH - 1], np.int32)
    cut = windows(jnp.asarray(STREAM), jnp.asarray(at), LENGTH + 1)
    np.testing.assert_array_equal(cut, [STREAM[s : s + LENGTH + 1] for s in at])


# --- Inputs, not constants ---------------------------------------------------------------------------------------


def check_compiled_once(program: Counting, *settings: dict[str, float]) -> None:
    """Every setting runs, gives other numbers than all before it, and compiles nothing new."""
    train(program)
    before, seen = program.traces, set()
    for setting in settings:
        state, _ = train(program, **setting)
        seen.add(arrays(state)["params.embedding.table"].tobytes())
    assert len(seen) == len(settings), "a setting changes nothing"
    assert program.traces == before, "a setting was compiled anew"


SETTINGS = (
    {},
    {"learning_rate": 0.02},
    {"learning_rate": 0.0},
    {"weight_decay": 0.5},
    {"seed": 1},
    {"num_steps": 5},
)


def test_learning_rate_decay_seed_and_length_are_inputs(program):
    check_compiled_once(program, *SETTINGS)
    assert program.train_steps._cache_size() == 1


def test_the_check_notices_a_setting_that_does_nothing(program):
    with pytest.raises(AssertionError, match="changes nothing"):
        check_compiled_once(program, {}, {"learning_rate": program.config.optimizer.learning_rate})


def test_the_count_notices_another_program(program):
    arguments = (chunk(0, 1), jnp.int32(0), jnp.int32(1), program.hyperparameters(program.config))
    program.train_steps.lower(program.init(0), jnp.asarray(STREAM), *arguments)
    before = program.traces
    program.train_steps.lower(program.init(0), jnp.asarray(STREAM), *arguments)
    assert program.traces == before
    program.train_steps.lower(program.init(0), jnp.asarray(STREAM, jnp.int32), *arguments)
    assert program.traces == before + 1


def test_hyperparameters_come_from_the_members_config():
    hyper = Program.hyperparameters(
        tiny({"optimizer.learning_rate": 0.5, "optimizer.weight_decay": 0.25, "seed": 3, "init_seed": 2**32 + 9})
    )
    assert [float(x) for x in hyper] == [0.5, 0.25, 9.0, 3.0]


def test_a_learning_rate_that_is_no_number_shows_in_the_next_loss(program):
    losses = train(program, learning_rate=math.nan)[1]["loss"]
    assert np.isfinite(losses[0]) and np.isnan(losses[1:]).all()


def test_seeds_and_batches(program, trained):
    check_identical(train(program)[0], trained[0])  # the same twice
    assert train(program, seed=1)[1]["loss"][0] != trained[1]["loss"][0]


def test_metrics_are_what_they_are_called(program, trained):
    state, metrics = trained
    config = program.config
    rates = config.optimizer.learning_rate * unit_schedule(config)(jnp.arange(STEPS))
    np.testing.assert_allclose(metrics["learning_rate"], rates, rtol=1e-6)
    norm = math.sqrt(
        sum(float((x.astype(np.float64) ** 2).sum()) for x in map(np.asarray, named(state.params).values()))
    )
    np.testing.assert_allclose(metrics["param_norm"][-1], norm, rtol=1e-5)
    batch = np.stack([STREAM[s : s + LENGTH + 1] for s in starts(0)]).astype(np.int32)

    def loss(params):
        log_p = jax.nn.log_softmax(program.model(TrainState(params, {}, None))(batch[:, :-1]))
        return -jnp.take_along_axis(log_p, batch[:, 1:, None], axis=-1).mean()

    value, grads = jax.jit(jax.value_and_grad(loss))(program.init(0).params)
    np.testing.assert_allclose(metrics["loss"][0], value, rtol=1e-5)
    norm = math.sqrt(sum(float((np.asarray(g, np.float64) ** 2).sum()) for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(metrics["grad_norm"][0], norm, rtol=1e-4)


# --- Accumulation ------------------------------------------------------------------------------------------------


def check_same_training(metrics: dict[str, np.ndarray], state: TrainState, trained) -> None:
    np.testing.assert_allclose(metrics["loss"], trained[1]["loss"], atol=1e-6, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], trained[1]["grad_norm"], rtol=1e-5)
    for name, x in arrays(state).items():
        np.testing.assert_allclose(x, arrays(trained[0])[name], rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def accumulating() -> Counting:
    return Counting({"train.accumulate": 2})


def test_microbatches_add_up_to_the_batch(accumulating, trained):
    state, metrics = train(accumulating)
    check_same_training(metrics, state, trained)


def test_the_check_notices_a_lost_microbatch(accumulating, trained):
    state, metrics = train(accumulating, rows=lambda step: np.tile(starts(step)[: BATCH // 2], 2))
    with pytest.raises(AssertionError):
        check_same_training(metrics, state, trained)


class Weighted(Counting):
    """The microbatches of a step have different numbers of targets."""

    weights = np.array([1, 1, 0, 1])[:, None] * (np.arange(LENGTH + 1) % np.array([1, 3, 1, 4])[:, None] == 0)

    def train_step(self, state, batch, step, hyper):
        weights = jnp.asarray(self.weights, jnp.float32)
        return super().train_step(state, batch.replace(weights_BL=weights), step, hyper)


@pytest.fixture(scope="module")
def weighted() -> tuple[TrainState, dict[str, np.ndarray]]:
    return train(Weighted())


def test_microbatches_weigh_as_much_as_their_targets(weighted):
    state, metrics = train(Weighted({"train.accumulate": 2}))
    check_same_training(metrics, state, weighted)


def test_the_check_notices_a_mean_of_means(weighted, monkeypatch):
    honest = step_module._mean_over_parts

    def mean_of_means(part, *rest):
        def unweighted(*arguments):
            model_state, (loss, _, grads) = part(*arguments)
            return model_state, (loss, None, grads)

        return honest(unweighted, *rest)

    monkeypatch.setattr(step_module, "_mean_over_parts", mean_of_means)
    state, metrics = train(Weighted({"train.accumulate": 2}))
    with pytest.raises(AssertionError):
        check_same_training(metrics, state, weighted)


# --- Dropout and smoothing ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dropping() -> Counting:
    return Counting({"model.dropout": 0.3})


def test_dropout_is_a_function_of_seed_and_step(dropping, trained):
    state, metrics = train(dropping)
    check_identical(train(dropping)[0], state)
    check_identical(train(dropping, per_call=3)[0], state)
    assert np.all(metrics["loss"] != trained[1]["loss"])
    assert train(dropping, dropout_seed=1)[1]["loss"][0] != metrics["loss"][0]
    first = {s: float(train(dropping, num_steps=1, stuck_at=s)[1]["loss"][0]) for s in range(3)}
    assert first[0] == metrics["loss"][0] and len(set(first.values())) == 3


def test_without_dropout_the_seed_and_the_step_change_no_loss(program, trained):
    assert train(program, dropout_seed=1)[1]["loss"].tolist() == trained[1]["loss"].tolist()
    assert train(program, num_steps=1, stuck_at=3)[1]["loss"][0] == trained[1]["loss"][0]


def test_microbatches_drop_differently():
    """Each microbatch gets a key of its own, made of the seed, the step and its index."""

    class Keys(Counting):
        def mean_loss(self, params, model_state, batch, key):
            return jnp.sum(params["embedding"]["table"]), (jax.random.uniform(key), None, model_state)

    _, metrics = train(Keys({"train.accumulate": 2}), num_steps=2, dropout_seed=5)
    for step, loss in enumerate(metrics["loss"]):
        key = jax.random.fold_in(jax.random.key(5), step)
        drawn = [jax.random.uniform(jax.random.fold_in(key, i)) for i in range(2)]
        assert drawn[0] != drawn[1]
        np.testing.assert_allclose(loss, np.mean(drawn), rtol=1e-6)


def evaluated(program: Program, state: TrainState, weights: np.ndarray | None = None) -> Any:
    batch = np.stack([STREAM[s : s + LENGTH + 1] for s in starts(50)]).astype(np.int32)
    if weights is None:
        return jax.jit(program.evaluate_batch)(state, Batch(batch))
    return evaluated_batch(program, state, batch, weights)


def evaluated_batch(program: Program, state: TrainState, batch: np.ndarray, weights: np.ndarray) -> Any:
    """With weights [B, T] of the targets, in front of which stands a token that is only read."""
    return jax.jit(program.evaluate_batch)(state, Batch(batch, weights_BL=np.pad(weights, ((0, 0), (1, 0)))))


def test_evaluation_has_no_dropout_and_no_smoothing(program, dropping):
    plain = evaluated(program, program.init(0))
    np.testing.assert_allclose(evaluated(dropping, dropping.init(0)).nll_T, plain.nll_T, rtol=1e-6)
    smoothing = Counting({"objective.label_smoothing": 0.3})
    np.testing.assert_allclose(evaluated(smoothing, smoothing.init(0)).nll_T, plain.nll_T, rtol=1e-6)


def test_smoothing_is_minimised_but_not_reported(trained):
    _, metrics = train(Counting({"objective.label_smoothing": 0.3}))
    np.testing.assert_allclose(metrics["loss"][0], trained[1]["loss"][0], rtol=1e-6)
    assert abs(metrics["grad_norm"][0] / trained[1]["grad_norm"][0] - 1) > 1e-3
    assert not np.allclose(metrics["loss"][1:], trained[1]["loss"][1:], rtol=1e-4)


# --- Evaluation --------------------------------------------------------------------------------------------------


def check_evaluation(program: Program, weights: np.ndarray, claimed: np.ndarray) -> None:
    state = program.init(0)
    batch = np.stack([STREAM[s : s + LENGTH + 1] for s in starts(50)]).astype(np.int32)
    logits = np.asarray(jax.jit(lambda x: program.model(state)(x))(batch[:, :-1]), np.float64)
    log_z = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    nll = log_z - np.take_along_axis(logits, batch[:, 1:, None], axis=-1)[..., 0]
    sums = evaluated(program, state, weights)
    np.testing.assert_allclose(sums.nll_T, (nll * claimed).sum(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(sums.weight_T, claimed.sum(0))
    assert float(sums.bytes) == (BYTES_PER_TOKEN[batch[:, 1:]] * claimed).sum()


def test_evaluation_counts_each_weighted_token_once(program):
    weights = np.ones((BATCH, LENGTH), np.float32)
    check_evaluation(program, weights, weights)
    padded = weights.copy()
    padded[-1], padded[0, :3] = 0, 0
    check_evaluation(program, padded, padded)
    with pytest.raises(AssertionError):
        check_evaluation(program, weights, padded)


def test_evaluation_counts_right_targets_and_right_rows(program):
    state = program.init(0)
    batch = np.stack([STREAM[s : s + LENGTH + 1] for s in starts(50)]).astype(np.int32)
    predicted = np.asarray(program.model(state)(batch[:, :-1])).argmax(-1)
    batch[0, 1:] = np.asarray(program.model(state)(batch[:1, :-1])).argmax(-1)[0]  # right but for what follows from it
    weights = np.ones((BATCH, LENGTH), np.float32)
    weights[0, 1:], weights[1], weights[2] = 0, predicted[1] == batch[1, 1:], 0
    weights[1, 0] = 2.5 * (predicted[1, 0] == batch[1, 1])
    sums = evaluated_batch(program, state, batch, weights)
    right = np.asarray(program.model(state)(batch[:, :-1])).argmax(-1) == batch[:, 1:]
    np.testing.assert_allclose(sums.correct_T, (right * weights).sum(0))
    has_targets = weights.any(1)
    assert int(sums.rows) == has_targets.sum()
    assert int(sums.exact) == (has_targets & (right | (weights == 0)).all(1)).sum() >= 1


# --- Number formats ----------------------------------------------------------------------------------------------


def test_bfloat16_compute_runs_close_to_float32(trained):
    state, metrics = train(Counting({"numerics.compute_dtype": "bfloat16"}))
    assert {str(x.dtype) for x in named(state.params).values()} == {"float32"}
    assert not np.array_equal(metrics["loss"], trained[1]["loss"])
    np.testing.assert_allclose(metrics["loss"], trained[1]["loss"], atol=0.05)


def test_bfloat16_parameters_run():
    state, metrics = train(Counting({"numerics.param_dtype": "bfloat16"}))
    assert {str(x.dtype) for x in named(state.params).values()} == {"bfloat16"}
    assert np.isfinite(metrics["loss"]).all() and metrics["loss"][-1] < metrics["loss"][0]


@pytest.mark.parametrize("precision", ["highest", "high", "default"])
def test_the_step_asks_for_the_configured_precision(precision):
    """Whoever calls the program: the trainer, the lab, `eval.py` or a notebook."""
    made = Counting({"numerics.matmul_precision": precision})
    hyper, batch = made.hyperparameters(made.config), np.zeros((BATCH, LENGTH + 1), np.int32)
    arguments = (made.init(0), jnp.asarray(STREAM), chunk(0, 1), jnp.int32(0), jnp.int32(1), hyper)
    for text in (
        made.train_steps.lower(*arguments).as_text(),
        made.evaluate.lower(made.init(0), Batch(np.stack([batch])), np.zeros(1, np.int32), np.int32(1)).as_text(),
    ):
        products = [line for line in text.splitlines() if "dot_general" in line]
        assert products and all(f"precision = [{precision.upper()}, {precision.upper()}]" in x for x in products)


# --- The state ---------------------------------------------------------------------------------------------------


def test_states_go_to_flat_names_and_back(program, trained):
    flat = flat_state(trained[0])
    assert {name.split(".")[0] for name in flat} == {"params", "optimizer"}
    assert {
        "params.blocks.0.attention.branch.query.kernel",
        "params.embedding.table",
        "params.final_norm.gain",
    } <= flat.keys()
    back = unflat_state(program.abstract_state, flat)
    assert jax.tree.structure(back) == jax.tree.structure(trained[0])
    check_identical(back, trained[0])
    with pytest.raises(KeyError):
        unflat_state(program.abstract_state, {name: x for name, x in flat.items() if "query" not in name})


def test_abstract_state_has_the_shapes_of_the_real_one(program):
    real = {name: (x.shape, x.dtype) for name, x in flat_state(program.init(0)).items()}
    assert {name: (x.shape, x.dtype) for name, x in flat_state(program.abstract_state).items()} == real


def test_a_fresh_state_is_independent_of_states_already_trained(program):
    """The step takes over the buffers it is given; a new member must not share them."""
    before = arrays(program.init(0))
    train(program, num_steps=1)
    after = arrays(program.init(0))
    assert all(np.array_equal(before[name], after[name]) for name in before)
