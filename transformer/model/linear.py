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
        y = product(x.reshape(-1, x.shape[-1]), self.kernel.astype(x.dtype)).reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias.astype(x.dtype)


def product(x_ND: jax.Array, kernel_DF: jax.Array) -> jax.Array:
    """x W. On a CPU the weight gradient is computed in another way, which takes some 6% off a small model's step."""
    on_cpu = jax.default_backend() == "cpu"
    return _with_transposed_copy(x_ND, kernel_DF) if on_cpu else x_ND @ kernel_DF


@jax.custom_vjp
def _with_transposed_copy(x_ND: jax.Array, kernel_DF: jax.Array) -> jax.Array:
    return x_ND @ kernel_DF


def _gradients(saved: tuple[jax.Array, jax.Array], dy_NF: jax.Array) -> tuple[jax.Array, jax.Array]:
    # XLA's product that sums over the rows of both sides takes longer than a transposed copy and a usual product; the
    # barrier keeps it from making the former out of the latter.
    x_ND, kernel_DF = saved
    x_DN = jax.lax.optimization_barrier(x_ND.T)
    return dy_NF @ kernel_DF.T, x_DN @ dy_NF


_with_transposed_copy.defvjp(lambda x_ND, kernel_DF: (x_ND @ kernel_DF, (x_ND, kernel_DF)), _gradients)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes elements with probability `rate` and rescales the rest (Srivastava et al. 2014); no key, no dropout."""
    if rate == 0.0 or key is None:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jax.numpy.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)
