"""The compiled programs of one arm: many optimizer steps per call, and evaluation.

Everything here is written for one member. Learning rate, weight decay, seed and data are inputs, so one executable
serves every learning rate and seed of an arm.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.extend.core import ClosedJaxpr
from jax.sharding import NamedSharding

from transformer.data.batch import Batch, Layout
from transformer.data.batching import Read, read_windows
from transformer.data.vocabularies import Vocabulary
from transformer.model import data_seed, declare, init_seed, split
from transformer.model.initialization import abstract, initialize, path_name, roles
from transformer.model.remat import recomputing
from transformer.platform import compiled
from transformer.schema import Config
from transformer.training.objectives import OBJECTIVES, TINY, Objective, TokenLosses, layout_of
from transformer.training.optimizer import Hyperparameters, Optimizer
from transformer.training.sharding import make_placement
from transformer.training.transfer import Transfer, start_from

EVALUATION_SEED = 0  # of corruption in evaluation, whatever the run's seeds
SECONDS_PER_CALL = 0.5  # long enough to hide dispatch, short enough for Ctrl-C and a living progress bar
BATCHES_PER_CALL = 16  # of evaluation: what no batch changes, such as angles of rotary positions, is computed once
METRICS = ("loss", "learning_rate", "grad_norm", "param_norm")


class TrainState(NamedTuple):
    """All that training changes. `model_state` holds what is neither trained nor constant (running statistics)."""

    params: Any
    model_state: Any
    optimizer: Any


class EvalSums(NamedTuple):
    """Sums over evaluation batches, one or many; the mean is taken once, at the end, over all of them.

    Attributes:
      nll_T: nats by position in the row.
      weight_T: targets by position.
      correct_T: targets whose most likely prediction is right, by position.
      exact: rows all of whose targets are right.
      rows: rows with at least one target.
      bytes: bytes of text the targets stand for.
      padding: positions fed to the model that are padding.
      positions: positions fed to the model.
    """

    nll_T: jax.Array
    weight_T: jax.Array
    correct_T: jax.Array
    exact: jax.Array
    rows: jax.Array
    bytes: jax.Array
    padding: jax.Array
    positions: jax.Array


class Program:
    """The model, objective and optimizer of one arm as pure functions over a `TrainState`.

    Args:
      config: a resolved config.
      vocab_size: size of the data's vocabulary.
      bytes_per_token: int32 [vocab_size], for bits per byte.
      vocabulary: for objectives that need special tokens.
      read: how a step makes its batch from what the feed gives; by default it cuts windows of text.
    """

    def __init__(
        self,
        config: Config,
        vocab_size: int,
        bytes_per_token: np.ndarray,
        vocabulary: Vocabulary | None = None,
        read: Read | None = None,
    ):
        self.config, self.vocab_size = config, config.model.vocab_size or vocab_size
        self.vocabulary = vocabulary
        self.transfer: Transfer | None = None  # what the last `init` took from another run
        model = declare(config, vocab_size)
        self.structure, self.declared, self.declared_state = split(model)
        self.roles = roles(self.declared)
        self.optimizer = Optimizer(config, self.roles)
        self.objective: Objective = OBJECTIVES.build(config.objective.kind, config, vocabulary)
        self.read = read or read_windows(self.layout)
        self.bytes_per_token = np.asarray(bytes_per_token, np.int32)
        train = config.train
        self.placement = make_placement(config)
        self.max_steps_per_call = min(train.steps, train.steps_per_call or 64)
        precision = config.numerics.matmul_precision
        self.train_steps = compiled(self._train_steps, precision, donate_argnums=0)
        self.evaluate = compiled(self._evaluate, precision)
        self._one_step = jax.jit(self.train_step, inline=True)  # traced once, to be counted and for the loop

    # --- state ---------------------------------------------------------------------------------------------------

    def init(self, seed: int) -> TrainState:
        """The state before step 0 of one seed."""
        params = initialize(self.declared, self.config, seed, self._sharding_of)
        # Copies, because a step takes over the buffers it is given.
        model_state = jax.tree.map(jnp.array, nnx.to_pure_dict(self.declared_state))
        if self.config.train.init_from:
            params, model_state, self.transfer = start_from(self.config.train.init_from, self, params, model_state)
        state = TrainState(params, model_state, self.optimizer.init(params, self._sharding_of))
        return state if self.placement is None else self.placement.place(state)

    def _sharding_of(self, leaf: np.ndarray) -> NamedSharding | None:
        """Where a parameter or moment is put, so that no device ever holds more than its share."""
        return None if self.placement is None else self.placement.of_leaf(leaf)

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes and dtypes of the state."""
        params = abstract(self.declared, self.config)
        model_state = jax.eval_shape(lambda: jax.tree.map(jnp.array, nnx.to_pure_dict(self.declared_state)))
        state = TrainState(params, model_state, self.optimizer.abstract(params))
        return state if self.placement is None else self.placement.abstract(state)

    @property
    def layout(self) -> Layout:
        """How the rows of its batches are filled."""
        return layout_of(self.config)

    @property
    def abstract_batch(self) -> Batch:
        """Shapes and dtypes of what `train_step` is given, without padding."""
        return self.layout.abstract_batch(self.config.train.batch_size)

    @property
    def abstract_prepared(self) -> Batch:
        """Shapes and dtypes of a batch as the model sees it."""
        return jax.eval_shape(lambda batch: self.objective.prepare(batch, jax.random.key(0)), self.abstract_batch)

    def model(self, state: TrainState) -> nnx.Module:
        """The model as a module."""
        return nnx.merge(self.structure, state.params, state.model_state)

    def replicated(self, array: np.ndarray) -> jax.Array:
        """An array where every step can read it."""
        array = np.asarray(array)
        return jnp.asarray(array) if self.placement is None else jax.device_put(array, self.placement.named())

    @staticmethod
    def hyperparameters(config: Config) -> Hyperparameters:
        """What a member of the arm feeds the step with."""
        settings = config.optimizer
        rate, decay = np.float32(settings.learning_rate), np.float32(settings.weight_decay)
        seeds = [np.uint32(seed % 2**32) for seed in (init_seed(config), data_seed(config))]
        return Hyperparameters(*jax.device_put([rate, decay, *seeds]))

    # --- training ------------------------------------------------------------------------------------------------

    def _train_steps(
        self,
        state: TrainState,
        resident: Any,
        chunk: jax.Array,
        first_step: jax.Array,
        num_steps: jax.Array,
        hyper: Hyperparameters,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Runs `num_steps` steps, a number known only at run time: one executable for any of them.

        Args:
          resident: the feed's arrays on the device, or None.
          chunk: what the feed says about each step, [max_steps_per_call, ...].
          first_step: index of the first step, from 0.

        Returns:
          The new state, and each metric as [max_steps_per_call]; entries from `num_steps` on mean nothing.
        """
        buffer = {name: jnp.zeros(self.max_steps_per_call, jnp.float32) for name in METRICS}

        def body(i: jax.Array, carry: Any) -> Any:
            state, buffer = carry
            state, metrics = self._one_step(state, self.read(resident, chunk[i]), first_step + i, hyper)
            return state, {name: buffer[name].at[i].set(metrics[name]) for name in METRICS}

        return jax.lax.fori_loop(0, num_steps, body, (state, buffer))

    def traced_step(self) -> ClosedJaxpr:
        """One step on a batch without padding, traced: what `flops` counts."""
        hyper = jax.eval_shape(lambda: self.hyperparameters(self.config))
        step = jax.ShapeDtypeStruct((), "int32")
        with jax.default_matmul_precision(self.config.numerics.matmul_precision):
            return self._one_step.trace(self.abstract_state, self.abstract_batch, step, hyper).jaxpr

    def train_step(
        self, state: TrainState, batch: Batch, step: jax.Array, hyper: Hyperparameters
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One optimizer step on one batch, as the data gives it."""
        parts = self.config.train.accumulate
        key = jax.random.fold_in(jax.random.key(hyper.dropout_seed), step)
        batch = self.objective.prepare(batch, jax.random.fold_in(jax.random.key(hyper.data_seed), step))
        micro = jax.tree.map(lambda x: x.reshape(parts, x.shape[0] // parts, *x.shape[1:]), batch)

        def part(model_state: Any, index_and_batch: tuple[jax.Array, Batch]) -> tuple[Any, Any]:
            index, piece = index_and_batch
            loss_of = jax.value_and_grad(self.mean_loss, has_aux=True)
            (_, (nll, weight, model_state)), grads = loss_of(
                state.params, model_state, piece, jax.random.fold_in(key, index)
            )
            return model_state, (nll, weight, grads)

        if parts == 1:
            model_state, (loss, _, grads) = part(state.model_state, (jnp.int32(0), micro.take(0)))
        else:
            model_state, loss, grads = _mean_over_parts(part, state, micro, parts)
        params, optimizer, rate = self.optimizer.update(grads, state.optimizer, state.params, step, hyper)
        metrics = {
            "loss": loss,
            "learning_rate": rate,
            "grad_norm": optax.global_norm(grads),
            "param_norm": optax.global_norm(params),
        }
        state = TrainState(params, model_state, optimizer)
        return state if self.placement is None else self.placement.constrain_state(state), metrics

    def mean_loss(self, params: Any, model_state: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
        """Mean smoothed loss of a prepared batch, with (mean nll, what the targets weigh, new model state) beside it;
        the weight is None where every token counts 1."""
        model = nnx.merge(self.structure, params, model_state)
        with recomputing(self.config.train.remat):
            losses = self._losses(model, batch, key, train=True)
        _, _, new_state = split(model)
        weight = None if losses.weights_BT is None else losses.weights_BT.sum()
        return losses.mean(losses.smoothed_BT), (losses.mean(losses.nll_BT), weight, nnx.to_pure_dict(new_state))

    def _losses(self, model: nnx.Module, batch: Batch, key: jax.Array | None, train: bool) -> TokenLosses:
        """The objective's losses, over all devices of the mesh."""
        if self.placement is None:
            return self.objective.losses(model, batch, key, train)
        with self.placement.constraining_blocks():
            return self.objective.losses(model, self.placement.constrain_batch(batch), key, train)

    # --- evaluation ----------------------------------------------------------------------------------------------

    def _evaluate(self, state: TrainState, batches: Batch, first_rows: jax.Array, count: jax.Array) -> EvalSums:
        """Sums over each of `count` batches, a number known only at run time, [BATCHES_PER_CALL, ...]; entries from
        `count` on mean nothing.

        Args:
          batches: every part [BATCHES_PER_CALL, B, ...].
          first_rows: the index of each batch's first row within the split.
        """

        one = jax.jit(self.evaluate_batch)  # traced once, for its shapes and for the loop

        def body(i: jax.Array, found: EvalSums) -> EvalSums:
            sums = one(state, batches.take(i), first_rows[i])
            return jax.tree.map(lambda all_N, x: all_N.at[i].set(x), found, sums)

        shapes = jax.eval_shape(one, state, batches.take(0), first_rows[0])
        empty = jax.tree.map(lambda x: jnp.zeros((BATCHES_PER_CALL, *x.shape), x.dtype), shapes)
        return jax.lax.fori_loop(0, count, body, empty)

    def evaluate_batch(self, state: TrainState, batch: Batch, first_row: jax.Array | int = 0) -> EvalSums:
        """Sums over one batch, as the data gives it; no dropout, running statistics, corruption from a fixed key.

        Args:
          first_row: index of its first row within the split.
        """
        batch = self.objective.prepare(batch, jax.random.key(EVALUATION_SEED), first_row)
        losses = self._losses(self.model(state), batch, None, train=False)
        weights_BT = jnp.ones_like(losses.nll_BT) if losses.weights_BT is None else losses.weights_BT
        counts_BT = weights_BT > 0
        bytes_per_target = jnp.asarray(self.bytes_per_token) * self.objective.predicts_tokens
        stored_BT = bytes_per_target[losses.targets_BT]
        padding, positions = batch.padding()
        return EvalSums(
            nll_T=(losses.nll_BT * weights_BT).sum(0),
            weight_T=weights_BT.sum(0),
            correct_T=(losses.correct_BT * weights_BT).sum(0),
            exact=(counts_BT.any(1) & (losses.correct_BT | ~counts_BT).all(1)).sum(),
            rows=counts_BT.any(1).sum(),
            bytes=(stored_BT * weights_BT).sum(),
            padding=padding,
            positions=positions,
        )


def _mean_over_parts(part: Any, state: TrainState, micro: Batch, parts: int) -> tuple[Any, jax.Array, Any]:
    """Model state, mean loss and gradient of a step over its microbatches, each weighing as much as its targets do.
    The sums are carried along, so however many there are, one gradient is held beside that of the present one."""

    def add(carry: Any, index_and_batch: tuple[jax.Array, Batch]) -> tuple[Any, None]:
        model_state, total, sums = carry
        model_state, (loss, weight, grads) = part(model_state, index_and_batch)
        weight = jnp.float32(1.0) if weight is None else weight
        return (model_state, total + weight, jax.tree.map(lambda s, x: s + weight * x, sums, (loss, grads))), None

    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32)), state.params)
    start = (state.model_state, jnp.float32(0.0), (jnp.float32(0.0), zeros))
    (model_state, total, (loss, grads)), _ = jax.lax.scan(add, start, (jnp.arange(parts), micro))
    total = jnp.maximum(total, TINY)
    return model_state, loss / total, jax.tree.map(lambda g, p: (g / total).astype(p.dtype), grads, state.params)


def flat_state(state: TrainState) -> dict[str, jax.Array]:
    """The state under the names it is stored by: `params.blocks.0.attention.branch.query.kernel`, ..."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def unflat_state(like: TrainState, flat: dict[str, jax.Array]) -> TrainState:
    """The inverse of `flat_state`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: flat[path_name(path)], like)
