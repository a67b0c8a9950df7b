"""The encoder-only model: every token sees every other."""

from __future__ import annotations

from typing import Any

import jax

from transformer.model.heads import Predictor


class Encoder(Predictor):
    """Embedding, blocks, norm, logits, without a causal mask: for filling gaps, tagging and classifying (BERT)."""

    is_causal = False

    def __call__(self, tokens_BT: jax.Array, **arguments: Any) -> jax.Array:
        """Logits for each input token itself.

        Args:
          tokens_BT: token ids, int32.
          **arguments: positions, segments, token types, dropout key: those of `begin`; there is no cache.

        Returns:
          Logits in float32: [B, T, V], or what the head makes of the row.
        """
        return self.predict(tokens_BT, self.begin(tokens_BT, **arguments))
