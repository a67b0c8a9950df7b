"""What to put where an intermediate value was: zero, a mean, another row's value, or a given one.

Each function makes an edit for `taps.replace`:

    replace(model, **{"blocks.1.attention.heads": within(zero, axis=1, index=3)})(tokens)   # without head 3

An edit that takes a `reference` was captured at the same tap, from the same or another batch. Zero is often far from
anything the next layer has seen; a mean or a resampled value removes the information and keeps the scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from transformer.model.taps import capture, replace

Edit = Callable[[jax.Array], jax.Array]


def zero(x: jax.Array) -> jax.Array:
    """Nothing at all."""
    return jnp.zeros_like(x)


def given(value: jax.Array) -> Edit:
    """A value of your own, broadcast to the shape at the tap; one captured from another input patches it in."""
    return lambda x: jnp.broadcast_to(value, x.shape).astype(x.dtype)


def mean(reference: jax.Array) -> Edit:
    """The mean over the rows of a reference batch, position by position.

    Args:
      reference: [N, ...], with the shape of the tap beyond the first axis.
    """
    return given(reference.mean(axis=0, keepdims=True))


def resample(reference: jax.Array, key: jax.Array) -> Edit:
    """For each row, the value of a row drawn at random from a reference batch.

    Args:
      reference: [N, ...], with the shape of the tap beyond the first axis.
      key: a JAX random key.
    """
    return lambda x: reference[jax.random.randint(key, x.shape[:1], 0, len(reference))].astype(x.dtype)


def within(edit: Edit, axis: int, index: int) -> Edit:
    """The edit at one index of an axis only: a head (axis 1 of `attention.heads`), a position (axis 1 of a residual).

    Raises:
      IndexError: the axis at the tap is shorter.
    """

    def edit_slice(x: jax.Array) -> jax.Array:
        if not 0 <= index < x.shape[axis]:
            raise IndexError(f"index {index} on axis {axis}, but the value at this tap has the shape {x.shape}")
        here = jnp.arange(x.shape[axis]) == index
        return jnp.where(jnp.expand_dims(here, [i for i in range(x.ndim) if i != axis % x.ndim]), edit(x), x)

    return edit_slice


def next_token_loss(
    model: Callable[[jax.Array], jax.Array], tokens: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
    """Mean nats per token of windows [B, T + 1]; with weights of the same shape, of the tokens that they count."""
    log_p = jax.nn.log_softmax(model(tokens[:, :-1]).astype(jnp.float32))
    nll_BT = -jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=-1)[..., 0]
    return jnp.average(nll_BT, weights=None if weights is None else weights[:, 1:])


def costs(
    model: Any, tokens: jax.Array, knock_outs: Mapping[str, Mapping[str, Edit]], weights: jax.Array | None = None
) -> dict[str, float]:
    """How much the loss rises under each of several knock-outs.

    Args:
      model: a causal model.
      tokens: windows [B, T + 1].
      knock_outs: name of the knock-out -> {tap: edit}.
      weights: how much each token counts as a target, [B, T + 1]; None: all alike.

    Returns:
      Name -> loss with it less the loss without, nats per token.

    Raises:
      KeyError: a tap the model does not have.
    """
    tokens = jnp.asarray(tokens)
    intact = next_token_loss(model, tokens, weights)
    return {
        name: float(next_token_loss(replace(model, **edits), tokens, weights) - intact)
        for name, edits in knock_outs.items()
    }


def head_costs(
    model: Any,
    tokens: jax.Array,
    how: Callable[[jax.Array], Edit] = lambda reference: zero,
    weights: jax.Array | None = None,
) -> list[list[float]]:
    """How much the loss rises without each attention head (Michel et al. 2019): [layer][head], nats per token.

    Args:
      model: a causal model.
      tokens: windows [B, T + 1].
      how: makes the edit from what the tap held on these tokens, such as `mean`; by default zero.
      weights: as in `costs`.
    """
    _, seen = capture(model)(jnp.asarray(tokens)[:, :-1])
    taps = [name for name in seen if name.endswith(".attention.heads")]
    found = costs(
        model,
        tokens,
        {
            f"{tap}/{head}": {tap: within(how(seen[tap]), axis=1, index=head)}
            for tap in taps
            for head in range(seen[tap].shape[1])
        },
        weights,
    )
    return [[found[f"{tap}/{head}"] for head in range(seen[tap].shape[1])] for tap in taps]
