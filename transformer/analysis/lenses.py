"""What the model would say if it stopped early: the residual stream of every layer, read by the last one's eyes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from transformer.analysis.interventions import given
from transformer.model.taps import capture, replace


def logit_lens(model: Any, tokens_BT: jax.Array) -> jax.Array:
    """Logits read from the stream after the embedding and after each block (nostalgebraist 2020).

    The stream of a layer is put in the place of the last block's, so it goes through exactly the final norm and the
    unembedding that the model itself uses.

    Args:
      model: a decoder.
      tokens_BT: token ids, int32.

    Returns:
      [num_layers + 1, B, T, V]; the last one equals `model(tokens_BT)`.
    """
    last = f"blocks.{model.num_layers - 1}.residual"
    _, seen = capture(model)(tokens_BT)
    stream = [seen["embedding"], *(seen[f"blocks.{layer}.residual"] for layer in range(model.num_layers))]
    return jnp.stack([replace(model, **{last: given(x_BTD)})(tokens_BT) for x_BTD in stream])


def residual_writes(model: Any, tokens_BT: jax.Array) -> dict[str, jax.Array]:
    """What each part wrote into the residual stream, by tap name, [B, T, d_model] each.

    In a model without norms on the stream (`pre`, `branch`, `sandwich`, `none`) and with skip gains of one, their sum
    is the stream before the final norm (Elhage et al. 2021).
    """
    _, seen = capture(model)(tokens_BT)
    return {
        name: x
        for name, x in seen.items()
        if name == "embedding" or name.endswith((".attention.output", ".ffn.output"))
    }
