"""The dense layer, and the two ways its weight gradient is computed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.model import linear

RNG = np.random.default_rng(0)
X, KERNEL, DY = (RNG.normal(size=shape).astype(np.float32) for shape in ((12, 5), (5, 7), (12, 7)))


def gradients(x, kernel, dy):
    y, pull = jax.vjp(linear.product, x, kernel)
    return y, *pull(dy)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_product_and_gradients(monkeypatch, backend, dtype):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x, kernel, dy = (jnp.asarray(part, dtype) for part in (X, KERNEL, DY))
    wanted = (X @ KERNEL, DY @ KERNEL.T, X.T @ DY)
    tolerance = 1e-5 if dtype == "float32" else 3e-2
    for ours, exact in zip(gradients(x, kernel, dy), wanted, strict=True):
        assert ours.dtype == dtype
        np.testing.assert_allclose(np.asarray(ours, np.float32), exact, rtol=tolerance, atol=tolerance * 4)


def test_only_a_cpu_copies_what_it_multiplies(monkeypatch):
    def traced() -> str:
        return str(jax.make_jaxpr(lambda *arrays: gradients(*arrays))(X, KERNEL, DY))

    assert "optimization_barrier" in traced()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "optimization_barrier" not in traced()


def test_members_trained_together_have_the_gradients_of_each():
    together = jax.vmap(gradients)(*(jnp.stack([part, 2 * part]) for part in (X, KERNEL, DY)))
    for member, scale in enumerate((1.0, 2.0)):
        alone = gradients(scale * X, scale * KERNEL, scale * DY)
        for ours, wanted in zip(together, alone, strict=True):
            np.testing.assert_allclose(ours[member], wanted, rtol=1e-5, atol=1e-5)
