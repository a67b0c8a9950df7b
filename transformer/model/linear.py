"""The dense layer every room uses. Kernels are stored two-dimensional, `[d_in, d_out]`, whatever computes fastest."""

from __future__ import annotations

import jax
from flax import nnx

from transformer.model.initialization import parameter


class Linear(nnx.Module):
    """y = x W + b, with W of shape [d_in, d_out]; computed in the dtype of x.

    Args:
      role: what the kernel is for (see `parameter`), which decides how it starts: `output` for kernels that write
        into the residual stream, ...
      init_scale: factor on the initial kernel.
    """

    def __init__(self, d_in: int, d_out: int, *, bias: bool = False, role: str = "matrix", init_scale: float = 1.0):
        self.kernel = parameter((d_in, d_out), role, init_scale=init_scale)
        self.bias = parameter((d_out,), "bias") if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        # Flat, because XLA would copy a transpose of the output's gradient to get the weight gradient of a 3-D product.
        y = (x.reshape(-1, x.shape[-1]) @ self.kernel.astype(x.dtype)).reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias.astype(x.dtype)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes elements with probability `rate` and rescales the rest (Srivastava et al. 2014); no key, no dropout."""
    if rate == 0.0 or key is None:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jax.numpy.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)
