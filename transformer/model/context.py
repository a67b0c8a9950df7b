"""What a forward pass carries beside the residual stream. New arguments are added here, not to every signature."""

from __future__ import annotations

import dataclasses
import zlib
from typing import TYPE_CHECKING, Any

import jax

from transformer.model.linear import dropout
from transformer.model.masks import Mask
from transformer.model.taps import tap

if TYPE_CHECKING:
    from transformer.model.cache import CacheWriter
    from transformer.model.positions import NoPosition


@dataclasses.dataclass(frozen=True)
class Context:
    """One forward pass, seen from inside a layer.

    Attributes:
      positions_BT: position of each input token, int32.
      mask: which keys a query may see.
      position: the position scheme.
      token_types_BT: rows of the type embedding; None: all 0.
      dropout_key: key of this step; None turns dropout and noise off.
      train: whether batch-dependent parts use and update batch statistics.
      cache: where attention stores and finds keys and values while decoding.
      scope: prefix of tap names, such as `blocks.0` or `encoder.blocks.0`.
      layer: index of the block.
      ffn: the feed-forward network all layers share, if they share one.
      memory: the encoded source that cross-attention reads.
    """

    positions_BT: jax.Array
    mask: Mask
    position: NoPosition
    token_types_BT: jax.Array | None = None
    dropout_key: jax.Array | None = None
    train: bool = False
    cache: CacheWriter | None = None
    scope: str = ""
    layer: int = 0
    ffn: Any = None
    memory: Any = None

    def in_layer(self, layer: int) -> Context:
        """The same pass inside block number `layer`."""
        return dataclasses.replace(
            self, layer=layer, scope=f"{self.scope}.blocks.{layer}" if self.scope else f"blocks.{layer}"
        )

    def tap(self, name: str, x: jax.Array) -> jax.Array:
        """A tap named after where it stands."""
        return tap(f"{self.scope}.{name}" if self.scope else name, x)

    def dropout(self, name: str, x: jax.Array, rate: float) -> jax.Array:
        """Dropout with a key that depends on the step, the layer and the place only."""
        return dropout(x, rate, self.key(name)) if self.drops(rate) else x

    def drops(self, rate: float) -> bool:
        """Whether dropout at this rate does anything in this pass."""
        return self.dropout_key is not None and rate != 0.0

    def key(self, name: str) -> jax.Array | None:
        """A random key that depends on the step, the layer and the place only; None where nothing is random."""
        if self.dropout_key is None:
            return None
        return jax.random.fold_in(self.dropout_key, zlib.crc32(f"{self.scope}.{name}".encode()))
