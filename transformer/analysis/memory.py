"""Bytes: of training state by number format, of caches, of what the backward pass keeps, of score matrices.

Sizes are in bytes and plain products; a GB is 1e9 bytes, a GiB 2^30.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.extend.core import Jaxpr, Literal

from transformer.errors import UserError
from transformer.model.attention_parts import head_shape
from transformer.model.feedforward import hidden_width
from transformer.model.layer_pattern import layer_kinds
from transformer.schema import Config

if TYPE_CHECKING:
    from transformer.training.step import Program


# --- Training state ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Formats:
    """Bytes per parameter of everything AdamW keeps.

    Attributes:
      weights: what the model computes with.
      gradients: their gradients.
      moments: both moments together.
      master: a second, more exact copy of the weights, or 0.
    """

    weights: int
    gradients: int
    moments: int
    master: int = 0

    @property
    def total(self) -> int:
        """Bytes per parameter in all."""
        return self.weights + self.gradients + self.moments + self.master


# Mixed precision as in Rajbhandari et al. 2020 (ZeRO), section 3.1: half the bits to compute with, single precision
# for the optimizer.
POLICIES = {
    "float32": Formats(weights=4, gradients=4, moments=8),
    "half": Formats(weights=2, gradients=2, moments=4),
    "mixed": Formats(weights=2, gradients=2, moments=8, master=4),
}


def training_state_bytes(parameters: int, policy: str = "float32") -> dict[str, int]:
    """Bytes of weights, gradients and optimizer state under a policy of `POLICIES`."""
    formats = POLICIES[policy]
    return {
        "weights": parameters * formats.weights,
        "gradients": parameters * formats.gradients,
        "optimizer": parameters * (formats.moments + formats.master),
    }


def state_bytes(state: Any) -> int:
    """Bytes of a tree of arrays or of shapes, such as a training state."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))


# --- Caches ------------------------------------------------------------------------------------------------------


def kv_cache_bytes(
    layers: int, tokens: int, kv_heads: int, head_dim: int, value_dim: int = 0, *, itemsize: int = 2, batch: int = 1
) -> int:
    """Keys and values of `tokens` tokens: layers * tokens * kv_heads * (head_dim + value_dim) numbers per sequence.

    Args:
      value_dim: 0: head_dim.
      itemsize: bytes per number.
    """
    return batch * layers * tokens * kv_heads * (head_dim + (value_dim or head_dim)) * itemsize


def longest_context(
    budget: int, layers: int, kv_heads: int, head_dim: int, *, itemsize: int = 2, batch: int = 1
) -> int:
    """Tokens whose keys and values fit into `budget` bytes."""
    return budget // kv_cache_bytes(layers, 1, kv_heads, head_dim, itemsize=itemsize, batch=batch)


def cache_bytes(program: Program, tokens: int = 0, batch: int = 1) -> int:
    """Bytes of the cache the model decodes with, as it lays it out; nothing is allocated.

    Args:
      tokens: its capacity; 0: one training window.

    Raises:
      UserError: this model cannot decode with a cache.
    """
    model: Any = program.model(program.abstract_state)
    if not hasattr(model, "empty_cache"):
        raise UserError(f"model.family={program.config.model.family} reads whole texts: it decodes without a cache.")
    capacity = tokens or program.layout.length
    return state_bytes(jax.eval_shape(lambda: model.empty_cache(batch, capacity)))


# --- Activations -------------------------------------------------------------------------------------------------


def attention_matrix_bytes(tokens: int, heads: int = 1, layers: int = 1, *, itemsize: int = 2) -> int:
    """Scores (or weights) of every query and key, written out: layers * heads * tokens^2 numbers."""
    return layers * heads * tokens**2 * itemsize


def saved_bytes(program: Program) -> int:
    """Bytes that the backward pass of one microbatch reads from the forward pass, parameters and tokens not counted.

    Traced, so it holds for any variant: what autodiff keeps, each array once, but for those that are the same in every
    step, such as a causal mask. A compiler may keep less (it recomputes what is cheap) and needs more while it works.
    """
    parts = program.config.train.accumulate
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((x.shape[0] // parts, *x.shape[1:]), x.dtype), program.abstract_prepared
    )
    state = program.abstract_state

    def residuals(params: Any, model_state: Any, batch: Any, key: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            return program.mean_loss(params, model_state, batch, key)[0]

        return jax.tree.leaves(jax.vjp(loss, params)[1])

    traced = jax.make_jaxpr(residuals)(state.params, state.model_state, batch, jax.random.key(0)).jaxpr
    depend = _depending(traced, [True] * len(traced.invars))
    kept = {v: v.aval for v, depends in zip(traced.outvars, depend, strict=True) if depends and v not in traced.invars}
    return sum(math.prod(aval.shape) * np.dtype(aval.dtype).itemsize for aval in kept.values() if _is_plain(aval))


def _depending(program: Jaxpr, given: Sequence[bool]) -> list[bool]:
    """Which results of a traced program depend on its arguments, of which those `given` are no constants."""
    depending = {v for v, depends in zip(program.invars, given, strict=True) if depends}
    for equation in program.eqns:
        depend = [not isinstance(v, Literal) and v in depending for v in equation.invars]
        if equation.primitive.name == "jit":
            made = _depending(equation.params["jaxpr"].jaxpr, depend)
        else:
            made = [any(depend)] * len(equation.outvars)
        depending.update(v for v, depends in zip(equation.outvars, made, strict=True) if depends)
    return [not isinstance(v, Literal) and v in depending for v in program.outvars]


def _is_plain(aval: Any) -> bool:
    """Whether an array holds numbers rather than random keys."""
    return isinstance(aval.dtype, np.dtype)


def activation_bytes(config: Config, vocab_size: int, length: int = 0) -> int:
    """Rough bytes of activations kept for the backward pass of one microbatch, without tracing.

    Counts, per token and layer, about 10 vectors of d_model, the hidden vector twice, and the scores of each head one
    and a half times; plus logits and their gradient once.

    Args:
      length: tokens of a row, those of its source included; 0: data.sequence_length.
    """
    model, length = config.model, length or config.data.sequence_length
    batch = config.train.batch_size // config.train.accumulate
    itemsize = 2 if config.numerics.compute_dtype == "bfloat16" else 4
    kinds = layer_kinds(model)
    hidden = 2 * hidden_width(model) if model.ffn.kind != "none" else 0
    scores = 1.5 * head_shape(model).num_heads * length
    per_token = sum(10 * model.d_model + hidden * (kind != "attention") + scores * (kind != "ffn") for kind in kinds)
    return int(batch * length * (per_token + 2 * vocab_size) * itemsize)
