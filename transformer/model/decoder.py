"""The decoder-only language model."""

from __future__ import annotations

import math
from typing import Any, overload

import jax
import jax.numpy as jnp
from flax import nnx

from transformer.errors import UserError
from transformer.model.block import Block
from transformer.model.cache import Cache, CacheWriter, Layout, empty_cache
from transformer.model.context import Context
from transformer.model.feedforward import make_shared_feedforward
from transformer.model.initialization import parameter
from transformer.model.layer_pattern import layer_kinds
from transformer.model.linear import Linear
from transformer.model.masks import MASKS, Mask
from transformer.model.normalization import apply, has_final_norm, make_norm
from transformer.model.positions import POSITIONS
from transformer.model.taps import tap
from transformer.schema import Config


class TokenEmbedding(nnx.Module):
    """Rows of a table; `attend` uses the same table to make logits."""

    def __init__(self, vocab_size: int, d_model: int):
        self.table = parameter((vocab_size, d_model), "embedding")

    def __call__(self, tokens_BT: jax.Array, dtype: jnp.dtype) -> jax.Array:
        return self.table.astype(dtype)[tokens_BT]

    def attend(self, x_BTD: jax.Array) -> jax.Array:
        """Inner products of x with every row: [B, T, V]."""
        return x_BTD @ self.table.astype(x_BTD.dtype).T


class Decoder(nnx.Module):
    """Embedding, blocks, norm, logits. Each token is predicted from those before it.

    Args:
      config: a resolved config.
      vocab_size: rows of the embedding.
    """

    is_causal = True

    def __init__(self, config: Config, vocab_size: int):
        model = config.model
        self.dtype = jnp.dtype(config.numerics.compute_dtype)
        self.num_layers, self.dropout_rate = model.num_layers, model.dropout
        self.embedding_scale = model.embedding.scale or math.sqrt(model.d_model)
        self.causal = MASKS.build(model.attention.mask, self.is_causal)
        self.embedding = TokenEmbedding(vocab_size, model.d_model)
        self.embedding_norm = make_norm(model, model.norm.embedding)
        self.position = POSITIONS.build(model.position.kind, config, self.causal)
        self.ffn = make_shared_feedforward(model)
        self.blocks = nnx.List([Block(model, kind) for kind in layer_kinds(model)])
        self.final_norm = make_norm(model, has_final_norm(model))
        self.unembedding = None if model.embedding.tie else Linear(model.d_model, vocab_size, role="unembedding")

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
    def __call__(
        self, tokens_BT: jax.Array, *, segments_BT: jax.Array | None = None, cache: Cache
    ) -> tuple[jax.Array, Cache]: ...

    def __call__(self, tokens_BT, *, positions_BT=None, segments_BT=None, cache=None, dropout_key=None, train=False):
        """Logits for the token after each input token.

        Args:
          tokens_BT: token ids, int32.
          positions_BT: their positions, by default 0, 1, ...; with a cache they are what follows it.
          segments_BT: document ids from 1; tokens see their own document only, and id 0 is padding. With a cache
            each row is one document, and the ids only tell padding.
          cache: keys and values of the tokens before these.
          dropout_key: key of this step; None turns dropout and noise off.
          train: whether batch statistics are used and updated.

        Returns:
          Logits [B, T, V] in float32; with a cache, also the cache grown by T tokens.

        Raises:
          UserError: the cache has no room for them.
        """
        writer, mask = None, Mask(causal=self.causal, query_segments_BT=segments_BT, key_segments_BS=segments_BT)
        if positions_BT is None:
            positions_BT = jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None]
        if cache is not None:
            writer = CacheWriter(cache, tokens_BT.shape[1], segments_BT)
            positions_BT, mask = writer.positions_BT, Mask(causal=self.causal, window=cache.layout.window)
        context = Context(
            positions_BT=positions_BT if writer is None else writer.query_positions_BT,
            mask=mask,
            position=self.position,
            dropout_key=dropout_key,
            train=train,
            cache=writer,
            ffn=self.ffn,
        )
        x_BTD = self.embedding(tokens_BT, self.dtype)
        x_BTD = x_BTD if self.embedding_scale == 1 else x_BTD * self.embedding_scale
        x_BTD = self.position.embed(x_BTD, positions_BT)
        if writer is not None and writer.fits_BT is not None:
            x_BTD = jnp.where(writer.fits_BT[..., None], x_BTD, jnp.nan)
        x_BTD = apply(self.embedding_norm, x_BTD, context, "embedding_norm")
        x_BTD = tap("embedding", context.dropout("embedding", x_BTD, self.dropout_rate))
        for layer, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, context.in_layer(layer))
        x_BTD = tap("final", apply(self.final_norm, x_BTD, context, "final_norm"))
        logits_BTV = self.embedding.attend(x_BTD) if self.unembedding is None else self.unembedding(x_BTD)
        logits_BTV = tap("logits", logits_BTV.astype(jnp.float32))
        return logits_BTV if writer is None else (logits_BTV, writer.finish())

    def empty_cache(self, batch: int, layout: Layout | int) -> Cache:
        """A cache of some layout; a number stands for a full cache of that many tokens per row.

        Raises:
          UserError: a cache cannot be exact, because the model attends to the future, or because its position
            scheme treats earlier tokens otherwise once the text has grown longer.
        """
        layout = Layout(layout) if isinstance(layout, int) else layout
        if not self.causal:
            raise UserError("model.attention.mask=none lets tokens see the future: decoding with a cache is not exact.")
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
