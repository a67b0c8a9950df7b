"""Initial weights, drawn per parameter from a key made of the seed and the parameter's path.

Two models of one seed share every weight they have in common, whatever else was added or removed: that is what
makes a comparison between two arms paired. Numbers come from NumPy's Philox bits through a written-out Box-Muller
transform, so nothing is compiled and a seed means the same weights on CPU, GPU and TPU.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transformer.model.layer_pattern import num_sublayers
from transformer.registry import Registry
from transformer.schema import Config, Model, field

SCHEMES = Registry("model.init.scheme")

# Roles: what a parameter is for. A scheme draws by role, weight decay applies by role.
BRANCH_ROLES = frozenset({"matrix", "value", "hidden"})
KERNEL_ROLES = BRANCH_ROLES | {"output"}
DECAYED_ROLES = KERNEL_ROLES | {"embedding", "unembedding", "position"}
ROLES = DECAYED_ROLES | {"gain", "bias", "residual_gain"}


def parameter(shape: tuple[int, ...], role: str, dtype: Any = jnp.float32, *, fill: float | None = None) -> nnx.Param:
    """Declares a parameter: shape, dtype and role, no numbers yet (`initialize` draws them).

    Roles: `output` (kernels that write into the residual stream), `value` (kernels of attention's values), `hidden`
    (kernels into the hidden units of a feed-forward network), `matrix` (other kernels of a branch), `embedding`,
    `unembedding`, `position`, `gain`, `bias`, `residual_gain`.

    Args:
      fill: what every element starts as, whatever the scheme.
    """
    if role not in ROLES:
        raise ValueError(f"unknown parameter role {role!r}")
    return nnx.Param(jax.ShapeDtypeStruct(shape, dtype), role=role, fill=fill)


class Scheme(Protocol):
    """Draws one parameter."""

    def __call__(self, role: str, shape: tuple[int, ...], bits: np.random.Philox) -> np.ndarray: ...


def standard_normal(bits: np.random.Philox, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal draws, float32, from raw 64-bit words by Box and Muller (1958)."""
    size = math.prod(shape)
    words = bits.random_raw(2 * ((size + 1) // 2)) >> np.uint64(11)
    uniform = (words.astype(np.float64) + 0.5) * 2.0**-53  # in (0, 1)
    radius, angle = np.sqrt(-2.0 * np.log(uniform[0::2])), 2.0 * np.pi * uniform[1::2]
    pairs = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return pairs[:size].reshape(shape).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class DepthScaled:
    depth_scaled: bool = field(True, "divide kernels that write into the stream by sqrt(2 * num_layers)")


@SCHEMES.register("gpt2", parameters=DepthScaled, paper="Radford et al. 2019, section 2.3")
class GPT2Scheme:
    """Normal with one standard deviation; kernels that write into the stream divided by sqrt(2 * num_layers)."""

    def __init__(self, model: Model):
        self.base_std, self.num_layers = model.init.std, max(1, model.num_layers)
        self.num_branches = max(1, num_sublayers(model))
        self.output_divisor = math.sqrt(2 * self.num_layers) if model.init.depth_scaled else 1.0

    def __call__(self, role: str, shape: tuple[int, ...], bits: np.random.Philox) -> np.ndarray:
        if role == "gain":
            return np.ones(shape, np.float32)
        if role in ("bias", "residual_gain"):
            return np.zeros(shape, np.float32)
        return standard_normal(bits, shape) * np.float32(self.std(role, shape))

    def std(self, role: str, shape: tuple[int, ...]) -> float:
        """Standard deviation of a parameter that is drawn."""
        return self.base_std / self.output_divisor if role == "output" else self.base_std


@SCHEMES.register("lecun", parameters=DepthScaled, paper="LeCun et al. 1998, section 4.6")
class LeCunScheme(GPT2Scheme):
    """Kernels keep the variance of their input: 1 / sqrt(fan_in); tables as `init.std` says."""

    def std(self, role: str, shape: tuple[int, ...]) -> float:
        if role not in KERNEL_ROLES:
            return self.base_std
        return shape[0] ** -0.5 / (self.output_divisor if role == "output" else 1.0)


@SCHEMES.register("zero_output", paper="Zhang et al. 2019 (Fixup), rule 1", traits=("identity_at_init",))
class ZeroOutputScheme(GPT2Scheme):
    """As gpt2, but kernels that write into the stream start at zero: every branch is silent at first."""

    def std(self, role: str, shape: tuple[int, ...]) -> float:
        return 0.0 if role == "output" else self.base_std


@SCHEMES.register("fixup", paper="Zhang et al. 2019 (Fixup)", traits=("identity_at_init",))
class FixupScheme(LeCunScheme):
    """The last kernel of a branch starts at zero, those before it 1 / sqrt(branches) smaller than LeCun's.

    The paper's scalar biases and multipliers are settings of their own (biases, branch_gain), and its zero
    classifier does not go with tied embeddings; neither is done here.
    """

    def std(self, role: str, shape: tuple[int, ...]) -> float:
        if role == "output":
            return 0.0
        shrink = self.num_branches**-0.5 if role in BRANCH_ROLES else 1.0  # L^(-1 / (2m - 2)), m = 2
        return shrink * super().std(role, shape)


@SCHEMES.register("deepnorm", paper="Wang et al. 2022 (DeepNet)")
class DeepNormScheme(GPT2Scheme):
    """Glorot normal, with gain beta = (8 * num_layers)^(-1/4) on values, hidden and output kernels.

    Goes with model.norm.placement=post and skip_gain=deepnorm, its alpha.
    """

    def std(self, role: str, shape: tuple[int, ...]) -> float:
        if role not in BRANCH_ROLES | {"output"}:
            return self.base_std
        beta = 1.0 if role == "matrix" else (8 * self.num_layers) ** -0.25
        return beta * math.sqrt(2.0 / sum(shape))


def path_name(path: tuple[Any, ...]) -> str:
    """`("blocks", 0, "attention", ...)` -> `"blocks.0.attention..."`: the name of a parameter everywhere."""
    return ".".join(str(getattr(part, "key", getattr(part, "idx", getattr(part, "name", part)))) for part in path)


def path_bits(seed: int, name: str) -> np.random.Philox:
    """The stream of random bits that belongs to one parameter of one seed."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "little"))


def roles(params: nnx.State) -> dict[str, Any]:
    """The role of every parameter, in the shape of the parameter tree."""
    return nnx.to_pure_dict(jax.tree.map(lambda v: v.replace(v.role), params, is_leaf=_is_variable))


def initialize(params: nnx.State, config: Config, seed: int) -> dict[str, Any]:
    """Draws the numbers of one seed for declared parameters.

    Args:
      params: state whose leaves are `ShapeDtypeStruct`s, as split from a freshly declared model.
      config: names the scheme and the dtype parameters are kept in.
      seed: any integer.

    Returns:
      Nested dicts of arrays on the default device, in `numerics.param_dtype`.
    """
    scheme: Scheme = SCHEMES.build(config.model.init.scheme, config.model)
    dtype = jnp.dtype(config.numerics.param_dtype)

    def draw(path: tuple[Any, ...], variable: nnx.Variable) -> nnx.Variable:
        shape = variable.get_value().shape
        if variable.fill is None:
            drawn = scheme(variable.role, shape, path_bits(seed, path_name(path)))
        else:
            drawn = np.full(shape, variable.fill, np.float32)
        return variable.replace(jnp.asarray(drawn, dtype))

    return nnx.to_pure_dict(jax.tree_util.tree_map_with_path(draw, params, is_leaf=_is_variable))


def _is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)
