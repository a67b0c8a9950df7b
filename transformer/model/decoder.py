"""The decoder-only language model, and the one that sees a prefix of its text at once."""

from __future__ import annotations

import dataclasses
from typing import Any, overload

import jax

from transformer.errors import UserError
from transformer.model.cache import Cache, Layout, empty_cache
from transformer.model.context import Context
from transformer.model.heads import Predictor


class Decoder(Predictor):
    """Embedding, blocks, norm, logits. Each token is predicted from those before it.

    Args:
      config: a resolved config.
      vocab_size: rows of the embedding.
    """

    @overload
    def __call__(
        self,
        tokens_BT: jax.Array,
        *,
        positions_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array: ...

    @overload
    def __call__(self, tokens_BT: jax.Array, *, cache: Cache, **arguments: Any) -> tuple[jax.Array, Cache]: ...

    def __call__(self, tokens_BT, **arguments):
        """Logits for the token after each input token.

        Args:
          tokens_BT: token ids, int32.
          **arguments: positions, segments, cache, dropout key, ...: those of `begin`.

        Returns:
          Logits [B, T, V] in float32; with a cache, also the cache grown by T tokens.

        Raises:
          UserError: the cache has no room for them.
        """
        return self.run(tokens_BT, self.begin(tokens_BT, **arguments))

    def run(self, tokens_BT: jax.Array, context: Context) -> Any:
        """`__call__`, with everything beside the tokens in a context."""
        logits_BTV = self.predict(tokens_BT, context)
        return logits_BTV if context.cache is None else (logits_BTV, context.cache.finish())

    def empty_cache(self, batch: int, layout: Layout | int) -> Cache:
        """A cache of some layout; a number stands for a full cache of that many tokens per row.

        Raises:
          UserError: a cache cannot be exact, because the model attends to the future or pools over all tokens, or
            because its position scheme treats earlier tokens otherwise once the text has grown longer.
        """
        layout = Layout(layout) if isinstance(layout, int) else layout
        if not self.causal:
            raise UserError("model.attention.mask=none lets tokens see the future: decoding with a cache is not exact.")
        if self.pools:
            raise UserError("model.head.kind=classify pools over the whole row: there is no next token to decode.")
        known = self.position.cache_length
        if known is not None and layout.forgets:
            raise UserError(
                "A cache that forgets tokens does not go with a position scheme that looks at the length of the text; "
                "use decode.cache=full, or choose another scheme."
            )
        if known is not None and layout.capacity > known:
            raise UserError(
                f"Decoding {layout.capacity} tokens with a cache is not exact: the position scheme changes what was "
                f"computed for earlier tokens once a text is longer than {known}. Decode fewer, or choose another "
                "scheme."
            )
        attention: Any = next((block.attention.branch for block in self.blocks if block.attention is not None), None)
        if attention is None:
            return empty_cache(self.num_layers, batch, 0, 0, 0, layout, self.dtype)
        # Where weights need no scores there are no keys to keep.
        key_dim = attention.head_dim if attention.weights.uses_scores else 0
        return empty_cache(
            self.num_layers, batch, attention.num_kv_heads, key_dim, attention.value_dim, layout, self.dtype
        )


class PrefixDecoder(Decoder):
    """A decoder whose tokens all see the prefix of their row, in both directions (Liu et al. 2018; Raffel et al. 2020,
    section 3.2.1, "prefix LM")."""

    looks_ahead = True

    def __call__(self, tokens_BT, *, prefix_length_B: jax.Array | None = None, **arguments):
        """As `Decoder`, with the number of tokens in each row's prefix, int32; None: a causal decoder.

        With a cache, the prefix belongs into one call: its tokens see each other.
        """
        context = self.begin(tokens_BT, **arguments)
        mask = dataclasses.replace(context.mask, prefix_length_B=prefix_length_B)
        return self.run(tokens_BT, dataclasses.replace(context, mask=mask))
