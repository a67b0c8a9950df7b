"""Which keys a query may see, as a structured description; the dense array is made only by who needs it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from transformer.registry import Registry

MASKS = Registry("model.attention.mask")
MASKS.register("auto")(lambda family_is_causal: family_is_causal)
MASKS.register("causal")(lambda family_is_causal: True)
MASKS.register("none")(lambda family_is_causal: False)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """The rules under which query t sees key s. All of them must hold.

    Attributes:
      causal: s must not stand after t.
      window: s must stand fewer than this many positions from t, before it or after it.
      prefix_length_B: keys before this position are visible to everyone, causal or not (prefix LM).
      key_segments_BS: s must not be padding, which has id 0.
      query_segments_BT: t and s must carry the same id; None: t sees every document.
      in_order: no rule, but a fact known while tracing: queries and keys stand at 0, 1, 2, ..., so that a kernel
        that numbers them itself sees what `dense` would tell it.
    """

    causal: bool = dataclasses.field(default=True, metadata={"static": True})
    window: int | None = dataclasses.field(default=None, metadata={"static": True})
    prefix_length_B: jax.Array | None = None
    query_segments_BT: jax.Array | None = None
    key_segments_BS: jax.Array | None = None
    in_order: bool = dataclasses.field(default=False, metadata={"static": True})

    def narrowed(self, window: int) -> Mask:
        """The same mask with at most this window; 0 changes nothing."""
        if not window:
            return self
        return dataclasses.replace(self, window=window if self.window is None else min(window, self.window))

    @property
    def is_plain(self) -> bool:
        """Whether it shows everything, or else what a kernel calls causal attention, with a window or without."""
        if self.prefix_length_B is not None or self.key_segments_BS is not None:
            return False
        return self.in_order if self.causal else self.window is None

    def dense(self, query_positions_BT: jax.Array, key_positions_BS: jax.Array) -> jax.Array | None:
        """The mask as booleans [B, 1, T, S] (B may be 1), or None when every key is visible."""
        t, s = query_positions_BT[:, :, None], key_positions_BS[:, None, :]
        allowed = None
        if self.causal:
            allowed = s <= t
            if self.prefix_length_B is not None:
                allowed = allowed | (s < self.prefix_length_B[:, None, None])
        if self.window is not None:
            allowed = _both(allowed, jnp.abs(t - s) < self.window)
        if self.key_segments_BS is not None:
            real = (self.key_segments_BS != 0)[:, None, :]
            if self.query_segments_BT is not None:
                real = real & (self.query_segments_BT[:, :, None] == self.key_segments_BS[:, None, :])
            allowed = _both(allowed, real)
        return None if allowed is None else allowed[:, None]


def _both(a: jax.Array | None, b: jax.Array) -> jax.Array:
    return b if a is None else jnp.logical_and(a, b)
