"""A stack: embedding, position scheme, blocks and final norm. Every family is made of one or two."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from transformer.model.block import Block
from transformer.model.cache import Cache, CacheWriter
from transformer.model.context import Context
from transformer.model.embeddings import TokenEmbedding, TypeEmbedding
from transformer.model.feedforward import make_shared_feedforward
from transformer.model.layer_pattern import layer_kinds
from transformer.model.masks import MASKS, Mask
from transformer.model.normalization import apply, has_final_norm, make_norm
from transformer.model.positions import POSITIONS
from transformer.schema import Config


class Stack(nnx.Module):
    """Token ids to states.

    Args:
      config: a resolved config, whose `model` is that of this stack.
      vocab_size: rows of the embedding; 0: it has none and is handed that of another stack.
      scope: prefix of its tap names and random keys.

    Attributes:
      is_causal: whether tokens are hidden from those before them, unless `model.attention.mask` says otherwise.
      looks_ahead: whether some tokens see later ones although the mask is causal.
    """

    is_causal = True
    looks_ahead = False

    def __init__(self, config: Config, vocab_size: int, scope: str = ""):
        model = config.model
        self.scope, self.dtype = scope, jnp.dtype(config.numerics.compute_dtype)
        self.num_layers, self.dropout_rate = model.num_layers, model.dropout
        self.embedding_scale = model.embedding.scale or math.sqrt(model.d_model)
        self.causal = MASKS.build(model.attention.mask, self.is_causal)
        types = model.embedding.token_types
        self.embedding = TokenEmbedding(vocab_size, model.d_model) if vocab_size else None
        self.token_types = TypeEmbedding(types, model.d_model) if types else None
        self.embedding_norm = make_norm(model, model.norm.embedding)
        self.position = POSITIONS.build(model.position.kind, config, self.causal and not self.looks_ahead)
        self.ffn = make_shared_feedforward(model)
        self.blocks = nnx.List([Block(model, kind) for kind in layer_kinds(model)])
        self.final_norm = make_norm(model, has_final_norm(model))

    def begin(
        self,
        tokens_BT: jax.Array,
        *,
        positions_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        token_types_BT: jax.Array | None = None,
        cache: Cache | None = None,
        dropout_key: jax.Array | None = None,
        train: bool = False,
    ) -> Context:
        """What one pass over these tokens carries along.

        Args:
          tokens_BT: token ids, int32.
          positions_BT: their positions, by default 0, 1, ...; with a cache they are what follows it.
          segments_BT: document ids from 1; tokens see their own document only, and id 0 is padding. With a cache
            each row is one document, and the ids only tell padding.
          token_types_BT: rows of the type embedding (`model.embedding.token_types`); by default all 0.
          cache: keys and values of the tokens before these.
          dropout_key: key of this step; None turns dropout and noise off.
          train: whether batch statistics are used and updated.
        """
        writer = None
        mask = Mask(
            causal=self.causal,
            query_segments_BT=segments_BT,
            key_segments_BS=segments_BT,
            in_order=positions_BT is None,
        )
        if positions_BT is None:
            positions_BT = jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None]
        if cache is not None:
            writer = CacheWriter(cache, tokens_BT.shape[1], segments_BT)
            positions_BT, mask = writer.query_positions_BT, Mask(causal=self.causal, window=cache.layout.window)
        return Context(
            positions_BT=positions_BT,
            mask=mask,
            position=self.position,
            token_types_BT=token_types_BT,
            dropout_key=dropout_key,
            train=train,
            cache=writer,
            scope=self.scope,
            ffn=self.ffn,
        )

    def states(self, tokens_BT: jax.Array, context: Context, embedding: TokenEmbedding | None = None) -> jax.Array:
        """The state of every token after the last block and its norm, [B, T, D].

        Args:
          embedding: that of another stack, for a stack that has none.
        """
        embed: Any = embedding or self.embedding
        writer = context.cache
        positions_BT = context.positions_BT if writer is None else writer.positions_BT
        x_BTD = embed(tokens_BT, self.dtype)
        x_BTD = x_BTD if self.embedding_scale == 1 else x_BTD * self.embedding_scale
        x_BTD = self.position.embed(x_BTD, positions_BT)
        if writer is not None and writer.fits_BT is not None:
            x_BTD = jnp.where(writer.fits_BT[..., None], x_BTD, jnp.nan)
        x_BTD = x_BTD if self.token_types is None else self.token_types(x_BTD, context.token_types_BT)
        x_BTD = apply(self.embedding_norm, x_BTD, context, "embedding_norm")
        x_BTD = context.tap("embedding", context.dropout("embedding", x_BTD, self.dropout_rate))
        for layer, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, context.in_layer(layer))
        return context.tap("final", apply(self.final_norm, x_BTD, context, "final_norm"))
