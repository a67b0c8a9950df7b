"""AdamW with decoupled weight decay on matrices only. Learning rate and decay are inputs, not constants."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from transformer.model.initialization import DECAYED_ROLES, ShardingOf
from transformer.schema import Config
from transformer.training.schedules import unit_schedule


class Hyperparameters(NamedTuple):
    """Inputs of the compiled step: members of one arm differ in these alone.

    Attributes:
      learning_rate, weight_decay: float32 scalars.
      dropout_seed: uint32 scalar.
      data_seed: uint32 scalar; with the step it decides corruption.
    """

    learning_rate: jax.Array
    weight_decay: jax.Array
    dropout_seed: jax.Array
    data_seed: jax.Array


def decay_mask(roles: Any) -> Any:
    """Which parameters decay, in the shape of the parameter tree: kernels, embeddings and position tables; never
    gains, biases or residual gains."""
    return jax.tree.map(lambda role: role in DECAYED_ROLES, roles)


class Optimizer:
    """AdamW (Loshchilov & Hutter 2019): p <- p - lr * schedule(step) * (adam(g) + weight_decay * p)."""

    def __init__(self, config: Config, roles: Any):
        settings = config.optimizer
        self.schedule = unit_schedule(config)
        self.mask = decay_mask(roles)
        clip = optax.clip_by_global_norm(settings.clip) if settings.clip else optax.identity()
        adam = optax.scale_by_adam(b1=settings.beta1, b2=settings.beta2, eps=settings.epsilon)
        self.transform = optax.chain(clip, adam)

    def init(self, params: Any, sharding_of: ShardingOf = lambda _: None) -> Any:
        """Zero moments, and the count of steps; made on the host, so that no shape of theirs is compiled for.

        Args:
          sharding_of: where each of them is put.
        """
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), self.abstract(params))
        # Not aliased, because a step takes over the buffers it is given.
        return jax.tree.map(lambda x: jax.device_put(x, sharding_of(x), may_alias=False), zeros)

    def abstract(self, params: Any) -> Any:
        """Shapes and dtypes of what `init` returns; of the parameters, these are enough."""
        return jax.eval_shape(self.transform.init, params)

    def update(
        self, grads: Any, state: Any, params: Any, step: jax.Array, hyper: Hyperparameters
    ) -> tuple[Any, Any, jax.Array]:
        """One step.

        Args:
          step: index of this step, from 0.

        Returns:
          (parameters, optimizer state, learning rate used).
        """
        directions, state = self.transform.update(grads, state, params)
        rate = hyper.learning_rate * self.schedule(step)

        def move(p: jax.Array, direction: jax.Array, decays: bool) -> jax.Array:
            direction = direction + hyper.weight_decay * p if decays else direction
            return (p - rate * direction).astype(p.dtype)

        return jax.tree.map(move, params, directions, self.mask), state, jnp.asarray(rate, jnp.float32)
