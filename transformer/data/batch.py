"""What one step sees: tokens, what counts as a target, who belongs together, and the encoder's side."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """One batch of B rows. Absent parts are None: they are no leaves of the tree and cost nothing.

    Attributes:
      tokens_BL: what the decoder or encoder stack reads or predicts, int32.
      weights_BL: how much token l counts as a target, float32; None: every token that is no padding counts 1.
      segments_BL: document ids from 1, int32; 0 is padding. None: each row is one document without padding.
      source_BS: what the encoder of an encoder-decoder reads, int32.
      source_segments_BS: as segments_BL, for the source.
      prefix_length_B: tokens at the start of a row that see each other in a prefix decoder, int32.
      labels: int32 [B], one per row, or [B, L], one per token.
    """

    tokens_BL: jax.Array
    weights_BL: jax.Array | None = None
    segments_BL: jax.Array | None = None
    source_BS: jax.Array | None = None
    source_segments_BS: jax.Array | None = None
    prefix_length_B: jax.Array | None = None
    labels: jax.Array | None = None

    @property
    def rows(self) -> int:
        """B."""
        return self.tokens_BL.shape[0]

    def take(self, rows: Any) -> Batch:
        """The rows an index or slice picks, of every part."""
        return jax.tree.map(lambda x: x[rows], self)

    def padding(self) -> tuple[jax.Array, jax.Array]:
        """(padding, all positions) of the rows and of their sources."""
        parts = ((self.tokens_BL, self.segments_BL), (self.source_BS, self.source_segments_BS))
        positions = sum(tokens.size for tokens, _ in parts if tokens is not None)
        padding = sum((segments == 0).sum() for _, segments in parts if segments is not None)
        return jnp.asarray(padding), jnp.asarray(positions)

    def replace(self, **parts: Any) -> Batch:
        """The batch with other parts."""
        return dataclasses.replace(self, **parts)

    def target_weights(self) -> jax.Array | None:
        """weights_BL, or what stands for it: 1 where a token is no padding; None where every token counts 1."""
        if self.weights_BL is not None or self.segments_BL is None:
            return self.weights_BL
        return (self.segments_BL != 0).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the rows of a batch are filled, as the objective and the family want them.

    Attributes:
      length: L, tokens per row that are read or predicted.
      source_length: S, tokens per row of the encoder's side; 0: there is none.
      overlap: tokens a window holds beyond `length`, which the next window holds too: 1 where the last token is only
        predicted, never read.
      marks_padding: whether rows of text carry segments even where no padding stands between real tokens, because a
        token would see the padding behind it.
      pairs: what becomes of an example's source: `joined` with the target in one row, or `separate`.
      lead: special token in front of every row of an example, or "".
      marks_prefix: whether rows say how long their prefix is, that is a source joined with its target.
      specials: special tokens the objective needs, beside those of the data.
      labels: whether a `row` or each `token` has a label; "" for neither.
      packed: several documents or examples share a row, told apart by segments.
    """

    length: int
    source_length: int = 0
    overlap: int = 1
    marks_padding: bool = False
    pairs: str = "joined"
    lead: str = ""
    marks_prefix: bool = False
    specials: tuple[str, ...] = ()
    labels: str = ""
    packed: bool = False

    @property
    def positions(self) -> int:
        """Tokens one row feeds to the model, padding included."""
        return self.length + self.source_length

    def abstract_batch(self, rows: int) -> Batch:
        """Shapes and dtypes of a batch without padding."""

        def array(*shape: int) -> Any:
            return jax.ShapeDtypeStruct(shape, jnp.int32)

        tokens_BL = array(rows, self.length + self.overlap)
        labels = {"": None, "row": array(rows), "token": tokens_BL}[self.labels]
        return Batch(
            tokens_BL, source_BS=array(rows, self.source_length) if self.source_length else None, labels=labels
        )


def positions_in_segments(segments_BL: jax.Array) -> jax.Array:
    """Positions that start again at 0 with every segment, int32 [B, L].

    Args:
      segments_BL: document ids; equal neighbours belong together.
    """
    places_L = jnp.arange(segments_BL.shape[1], dtype=jnp.int32)
    first_BL = jnp.concatenate(
        [jnp.ones_like(segments_BL[:, :1], bool), segments_BL[:, 1:] != segments_BL[:, :-1]], axis=1
    )
    starts_BL = jax.lax.cummax(jnp.where(first_BL, places_L, 0), axis=1)
    return places_L - starts_BL
