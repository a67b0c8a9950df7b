"""The encoder-decoder: a decoder with a second stack beside it, whose output it reads by cross-attention."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from transformer.config import stack_config
from transformer.errors import UserError
from transformer.model.cross_attention import Memory
from transformer.model.decoder import Decoder
from transformer.model.layer_pattern import has_cross_attention
from transformer.model.stack import Stack
from transformer.schema import Config, choice, field


@dataclasses.dataclass(frozen=True)
class EncoderDecoderParameters:
    cross_attention: str = choice(
        "full", "transformer.model.cross_attention:CROSS_ATTENTIONS", "how the decoder reads the source"
    )
    share_embedding: bool = field(True, "encoder and decoder look tokens up in one table")


class SourceStack(Stack):
    """The encoder of an encoder-decoder: no head."""

    is_causal = False


class EncoderDecoder(Decoder):
    """A source is encoded in both directions; the target is decoded from it, token by token (Vaswani et al. 2017).

    `model.encoder.*` and `model.decoder.*` change one of the two stacks.
    """

    def __init__(self, config: Config, vocab_size: int):
        super().__init__(stack_config(config, "decoder"), vocab_size)
        own_rows = 0 if config.model.share_embedding else vocab_size
        has_source = has_cross_attention(config.model)
        self.encoder = SourceStack(stack_config(config, "encoder"), own_rows, "encoder") if has_source else None

    def encode(
        self,
        source_BS: jax.Array,
        source_segments_BS: jax.Array | None = None,
        source_positions_BS: jax.Array | None = None,
        *,
        dropout_key: jax.Array | None = None,
        train: bool = False,
    ) -> Memory:
        """The source as the decoder reads it: once per text, however many tokens are decoded.

        Args:
          source_BS: token ids, int32.
          source_segments_BS: document ids from 1; 0 is padding.
          source_positions_BS: their positions; by default 0, 1, ...
        """
        if self.encoder is None:
            return Memory({})
        context = self.encoder.begin(
            source_BS,
            positions_BT=source_positions_BS,
            segments_BT=source_segments_BS,
            dropout_key=dropout_key,
            train=train,
        )
        source_BSD = self.encoder.states(source_BS, context, self.embedding if self.encoder.embedding is None else None)
        readers: dict[int, Any] = {layer: block.cross_attention for layer, block in enumerate(self.blocks)}
        layers = {i: r.branch.remember(source_BSD, source_segments_BS) for i, r in readers.items() if r is not None}
        return Memory(layers, source_segments_BS)

    def __call__(
        self,
        tokens_BT,
        *,
        source_BS=None,
        source_segments_BS=None,
        source_positions_BS=None,
        memory=None,
        **arguments,
    ):
        """Logits for the token after each target token.

        Args:
          tokens_BT: target token ids, int32.
          source_BS, source_segments_BS, source_positions_BS: the source, see `encode`.
          memory: the encoded source, instead of the source itself.
          **arguments: those of `begin`, about the target.

        Returns:
          Logits [B, T, V] in float32; with a cache, also the cache grown by T tokens.

        Raises:
          UserError: neither a source nor a memory, or both.
        """
        if (source_BS is None) == (memory is None):
            raise UserError("An encoder-decoder needs either source_BS or memory=model.encode(source_BS), not both.")
        if memory is None:
            randomness = {name: arguments[name] for name in ("dropout_key", "train") if name in arguments}
            memory = self.encode(source_BS, source_segments_BS, source_positions_BS, **randomness)
        return self.run(tokens_BT, dataclasses.replace(self.begin(tokens_BT, **arguments), memory=memory))
