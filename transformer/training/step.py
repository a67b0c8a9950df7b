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

from transformer.model import declare, init_seed, split
from transformer.model.initialization import abstract, initialize, path_name, roles
from transformer.schema import Config
from transformer.training.objectives import OBJECTIVES
from transformer.training.optimizer import Hyperparameters, Optimizer

METRICS = ("loss", "learning_rate", "grad_norm", "param_norm")


class TrainState(NamedTuple):
    """All that training changes. `model_state` holds what is neither trained nor constant (running statistics)."""

    params: Any
    model_state: Any
    optimizer: Any


class EvalSums(NamedTuple):
    """Sums over one evaluation batch; the mean is taken once, at the end, over all of them.

    Attributes:
      nll_T: nats by position in the window.
      weight_T: predicted tokens by position.
      bytes: bytes of text those tokens stand for.
    """

    nll_T: jax.Array
    weight_T: jax.Array
    bytes: jax.Array


class Program:
    """The model, objective and optimizer of one arm as pure functions over a `TrainState`.

    Args:
      config: a resolved config.
      vocab_size: size of the data's vocabulary.
      bytes_per_token: int32 [vocab_size], for bits per byte.
    """

    def __init__(self, config: Config, vocab_size: int, bytes_per_token: np.ndarray):
        self.config, self.vocab_size = config, config.model.vocab_size or vocab_size
        model = declare(config, vocab_size)
        self.structure, self.declared, self.declared_state = split(model)
        self.roles = roles(self.declared)
        self.optimizer = Optimizer(config, self.roles)
        self.losses = OBJECTIVES.build(config.objective.kind, config)
        self.bytes_per_token = np.asarray(bytes_per_token, np.int32)
        train = config.train
        self.max_steps_per_call = min(train.steps, train.steps_per_call or 64)
        precise = jax.default_matmul_precision(config.numerics.matmul_precision)  # read while tracing
        self.train_steps = jax.jit(precise(self._train_steps), donate_argnums=0)
        self.evaluate = jax.jit(precise(self._evaluate))

    # --- state ---------------------------------------------------------------------------------------------------

    def init(self, seed: int) -> TrainState:
        """The state before step 0 of one seed."""
        params = initialize(self.declared, self.config, seed)
        # Copies, because a step takes over the buffers it is given.
        model_state = jax.tree.map(jnp.array, nnx.to_pure_dict(self.declared_state))
        return TrainState(params, model_state, self.optimizer.init(params))

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes and dtypes of the state."""
        params = abstract(self.declared, self.config)
        model_state = jax.eval_shape(lambda: jax.tree.map(jnp.array, nnx.to_pure_dict(self.declared_state)))
        return TrainState(params, model_state, jax.eval_shape(self.optimizer.init, params))

    @property
    def abstract_batch(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of what `train_step` is given."""
        shape = (self.config.train.batch_size, self.config.data.sequence_length + 1)
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    def model(self, state: TrainState) -> nnx.Module:
        """The model as a module."""
        return nnx.merge(self.structure, state.params, state.model_state)

    @staticmethod
    def hyperparameters(config: Config) -> Hyperparameters:
        """What a member of the arm feeds the step with."""
        settings = config.optimizer
        return Hyperparameters(
            jnp.float32(settings.learning_rate),
            jnp.float32(settings.weight_decay),
            jnp.uint32(init_seed(config) % 2**32),
        )

    # --- training ------------------------------------------------------------------------------------------------

    def _train_steps(
        self,
        state: TrainState,
        corpus: jax.Array | None,
        chunk: jax.Array,
        first_step: jax.Array,
        num_steps: jax.Array,
        hyper: Hyperparameters,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Runs `num_steps` steps, a number known only at run time: one executable for any of them.

        Args:
          corpus: training tokens [N] on the device, or None if the chunk holds the windows themselves.
          chunk: [max_steps_per_call, B] window starts, or [max_steps_per_call, B, T + 1] windows.
          first_step: index of the first step, from 0.

        Returns:
          The new state, and each metric as [max_steps_per_call]; entries from `num_steps` on mean nothing.
        """
        buffer = {name: jnp.zeros(self.max_steps_per_call, jnp.float32) for name in METRICS}

        def body(i: jax.Array, carry: Any) -> Any:
            state, buffer = carry
            tokens = chunk[i] if corpus is None else windows(corpus, chunk[i], self.config.data.sequence_length + 1)
            state, metrics = self.train_step(state, tokens.astype(jnp.int32), first_step + i, hyper)
            return state, {name: buffer[name].at[i].set(metrics[name]) for name in METRICS}

        return jax.lax.fori_loop(0, num_steps, body, (state, buffer))

    def train_step(
        self, state: TrainState, tokens: jax.Array, step: jax.Array, hyper: Hyperparameters
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One optimizer step on one batch of windows [B, T + 1]."""
        parts = self.config.train.accumulate
        key = jax.random.fold_in(jax.random.key(hyper.dropout_seed), step)
        micro = tokens.reshape(parts, tokens.shape[0] // parts, *tokens.shape[1:])

        def part(model_state: Any, index_and_tokens: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
            index, piece = index_and_tokens
            loss_of = jax.value_and_grad(self.mean_loss, has_aux=True)
            (_, (nll, model_state)), grads = loss_of(state.params, model_state, piece, jax.random.fold_in(key, index))
            return model_state, (nll, grads)

        if parts == 1:
            model_state, (loss, grads) = part(state.model_state, (jnp.int32(0), micro[0]))
        else:
            model_state, (losses, stacked) = jax.lax.scan(part, state.model_state, (jnp.arange(parts), micro))
            loss, grads = losses.mean(), jax.tree.map(lambda g: g.mean(axis=0), stacked)
        params, optimizer, rate = self.optimizer.update(grads, state.optimizer, state.params, step, hyper)
        metrics = {
            "loss": loss,
            "learning_rate": rate,
            "grad_norm": optax.global_norm(grads),
            "param_norm": optax.global_norm(params),
        }
        return TrainState(params, model_state, optimizer), metrics

    def mean_loss(self, params: Any, model_state: Any, tokens: jax.Array, key: jax.Array) -> tuple[jax.Array, Any]:
        """Mean smoothed loss, with (mean nll, new model state) beside it."""
        model = nnx.merge(self.structure, params, model_state)
        losses = self.losses(model, tokens, key, train=True)
        _, _, new_state = split(model)
        return losses.smoothed_BT.mean(), (losses.nll_BT.mean(), nnx.to_pure_dict(new_state))

    # --- evaluation ----------------------------------------------------------------------------------------------

    def _evaluate(self, state: TrainState, tokens: jax.Array, weights: jax.Array) -> EvalSums:
        """Sums over one batch of windows [B, T + 1] with weights [B, T]; no dropout, running statistics."""
        losses = self.losses(self.model(state), tokens, None, train=False)
        stored = jnp.asarray(self.bytes_per_token)[losses.targets_BT]
        return EvalSums((losses.nll_BT * weights).sum(0), weights.sum(0), (stored * weights).sum())


def windows(corpus: jax.Array, starts: jax.Array, length: int) -> jax.Array:
    """corpus [N], starts [B] -> [B, length]."""
    return jax.vmap(lambda start: jax.lax.dynamic_slice(corpus, (start,), (length,)))(starts)


def flat_state(state: TrainState) -> dict[str, jax.Array]:
    """The state under the names it is stored by: `params.blocks.0.attention.branch.query.kernel`, ..."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def unflat_state(like: TrainState, flat: dict[str, jax.Array]) -> TrainState:
    """The inverse of `flat_state`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: flat[path_name(path)], like)
