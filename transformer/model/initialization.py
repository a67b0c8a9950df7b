"""Initial weights, drawn per parameter from a key made of the seed and the parameter's path.

Two models of one seed share every weight they have in common, whatever else was added or removed: that is what
makes a comparison between two arms paired. Numbers come from NumPy's Philox bits through a written-out Box-Muller
transform, so nothing is compiled and a seed means the same weights on CPU, GPU and TPU.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Sharding

from transformer.config import stack_models
from transformer.model.layer_pattern import num_sublayers, usual_depth
from transformer.registry import Registry
from transformer.schema import Config, Model

SCHEMES = Registry("model.init.scheme")
ShardingOf = Callable[[np.ndarray], Sharding | None]  # where an array is put; None: on the default device

# Roles: what a parameter is for. A scheme draws by role, weight decay applies by role.
BRANCH_ROLES = frozenset({"matrix", "value", "hidden"})
KERNEL_ROLES = BRANCH_ROLES | {"output"}
DECAYED_ROLES = KERNEL_ROLES | {"embedding", "unembedding", "position"}
ROLES = DECAYED_ROLES | {"gain", "bias", "residual_gain", "position_bias"}


def parameter(
    shape: tuple[int, ...],
    role: str,
    dtype: Any = jnp.float32,
    *,
    init_scale: float = 1.0,
    fill: float | None = None,
) -> nnx.Param:
    """Declares a parameter: shape, dtype and role, no numbers yet (`initialize` draws them).

    The last two axes of a kernel are its inputs and its outputs; axes before them count kernels side by side.

    Roles: `output` (kernels that write into the residual stream), `value` (kernels of attention's values), `hidden`
    (kernels into the hidden units of a feed-forward network), `matrix` (other kernels of a branch), `embedding`,
    `unembedding`, `position`, `gain`, `bias`, `residual_gain`, `position_bias` (added to attention scores: like any
    bias it does not decay, because decay would pull all distances towards the same score).

    Args:
      init_scale: factor on what the scheme draws.
      fill: what every element starts as, whatever the scheme.
    """
    if role not in ROLES:
        raise ValueError(f"unknown parameter role {role!r}")
    return nnx.Param(jax.ShapeDtypeStruct(shape, dtype), role=role, init_scale=init_scale, fill=fill)


class Scheme(Protocol):
    """Draws one parameter from its own bits. Rules may go by role, by shape, by name (`path_name`) and by what the
    scheme was built from, the `Model` section: depth and widths."""

    def __call__(self, role: str, shape: tuple[int, ...], bits: np.random.Philox, name: str = "") -> np.ndarray: ...


def standard_normal(bits: np.random.Philox, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal draws, float32, from raw 64-bit words by Box and Muller (1958)."""
    size = math.prod(shape)
    words = bits.random_raw(2 * ((size + 1) // 2)) >> np.uint64(11)
    uniform = (words.astype(np.float64) + 0.5) * 2.0**-53  # in (0, 1)
    radius, angle = np.sqrt(-2.0 * np.log(uniform[0::2])), 2.0 * np.pi * uniform[1::2]
    pairs = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return pairs[:size].reshape(shape).astype(np.float32)


@SCHEMES.register("plain", paper="Devlin et al. 2019 (BERT), in its published code")
class PlainScheme:
    """Normal with the same standard deviation everywhere. Base of all schemes, which give another one by role."""

    def __init__(self, model: Model):
        self.model = model

    def std(self, role: str, shape: tuple[int, ...], name: str) -> float:
        """The standard deviation of a parameter that is drawn."""
        del role, shape, name
        return self.model.init.std

    def __call__(self, role: str, shape: tuple[int, ...], bits: np.random.Philox, name: str = "") -> np.ndarray:
        if role == "gain":
            return np.ones(shape, np.float32)
        if role in ("bias", "residual_gain"):
            return np.zeros(shape, np.float32)
        std = self.std(role, shape, name)
        return standard_normal(bits, shape) * np.float32(std) if std else np.zeros(shape, np.float32)


@SCHEMES.register("gpt2", paper="Radford et al. 2019, section 2.3")
class GPT2Scheme(PlainScheme):
    """As plain, but kernels that write into the residual stream are divided by sqrt(2 * num_layers)."""

    def std(self, role: str, shape: tuple[int, ...], name: str) -> float:
        std = self.model.init.std
        return std / math.sqrt(usual_depth(self.model)) if role == "output" else std


def _output_kernels(config: Config) -> str | None:
    if config.model.attention.output_projection == "none" and config.model.layers != "ffn":
        return (
            "silences a branch by its last kernel, which attention has not with "
            "model.attention.output_projection=none; use another scheme or projection."
        )
    return None


@SCHEMES.register(
    "zero",
    paper="Zhang et al. 2019 (Fixup); Goyal et al. 2017",
    traits=("silent_branches",),
    check=_output_kernels,
)
class ZeroScheme(PlainScheme):
    """As plain, but kernels that write into the residual stream are zero: every block starts as the identity."""

    def std(self, role: str, shape: tuple[int, ...], name: str) -> float:
        return 0.0 if role == "output" else self.model.init.std


FROM_SHAPES = ("model.init.std",)  # what a scheme that goes by the shapes alone does not read


@SCHEMES.register("lecun", paper="LeCun et al. 1998 (Efficient BackProp)", unread=FROM_SHAPES)
class LeCunScheme(PlainScheme):
    """Normal with variance 1 / fan-in for kernels and 1 / d_model for tables.

    With model.embedding.scale=0 (sqrt(d_model)) the embeddings then have unit variance.
    """

    def std(self, role: str, shape: tuple[int, ...], name: str) -> float:
        return 1.0 / math.sqrt(shape[-2] if role in KERNEL_ROLES else self.model.d_model)


@SCHEMES.register("lecun_depth", paper="LeCun et al. 1998; Radford et al. 2019, section 2.3", unread=FROM_SHAPES)
class LeCunDepthScheme(LeCunScheme):
    """As lecun, but kernels that write into the residual stream are divided by sqrt(2 * num_layers)."""

    def std(self, role: str, shape: tuple[int, ...], name: str) -> float:
        std = super().std(role, shape, name)
        return std / math.sqrt(usual_depth(self.model)) if role == "output" else std


@SCHEMES.register("xavier", paper="Glorot & Bengio 2010", unread=FROM_SHAPES)
class XavierScheme(LeCunScheme):
    """As lecun, but with variance 2 / (fan-in + fan-out) for kernels."""

    def std(self, role: str, shape: tuple[int, ...], name: str) -> float:
        return math.sqrt(2.0 / sum(shape[-2:])) if role in KERNEL_ROLES else super().std(role, shape, name)


@SCHEMES.register(
    "fixup", paper="Zhang et al. 2019 (Fixup)", traits=("silent_branches",), check=_output_kernels, unread=FROM_SHAPES
)
class FixupScheme(LeCunScheme):
    """The last kernel of a branch starts at zero, those before it 1 / sqrt(branches) smaller than lecun's.

    The paper's scalar biases and multipliers are settings of their own (biases, branch_gain), and its zero
    classifier does not go with tied embeddings; neither is done here.
    """

    def std(self, role: str, shape: tuple[int, ...], name: str) -> float:
        if role == "output":
            return 0.0
        inside = role in BRANCH_ROLES and not name.startswith("head.")
        shrink = max(1, num_sublayers(self.model)) ** -0.5 if inside else 1.0  # L^(-1/(2m-2)), m = 2
        return shrink * super().std(role, shape, name)


def _deepnorm(config: Config) -> str | None:
    if config.model.family == "encoder_decoder":
        return "draws with the beta of a single stack; use another scheme for an encoder-decoder."
    return None


@SCHEMES.register("deepnorm", paper="Wang et al. 2022 (DeepNet)", check=_deepnorm, unread=FROM_SHAPES)
class DeepNormScheme(XavierScheme):
    """As xavier, with values, hidden and output kernels beta = (8 * num_layers)^(-1/4) smaller.

    Goes with model.norm.placement=post and skip_gain=deepnorm, its alpha.
    """

    def std(self, role: str, shape: tuple[int, ...], name: str) -> float:
        scaled = role in KERNEL_ROLES - {"matrix"}
        return super().std(role, shape, name) * ((8 * max(1, self.model.num_layers)) ** -0.25 if scaled else 1.0)


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


def initialize(
    params: nnx.State, config: Config, seed: int, sharding_of: ShardingOf = lambda _: None
) -> dict[str, Any]:
    """Draws the numbers of one seed for declared parameters.

    Args:
      params: state whose leaves are `ShapeDtypeStruct`s, as split from a freshly declared model.
      config: names the scheme and the dtype parameters are kept in.
      seed: any integer.
      sharding_of: where each array is put; by default on the default device.

    Returns:
      Nested dicts of arrays in `numerics.param_dtype`.
    """
    stacks = stack_models(config)  # depth counts where the parameter stands
    schemes: dict[str, Scheme] = {stack: SCHEMES.build(m.init.scheme, m) for stack, m in stacks.items()}
    dtype = jnp.dtype(config.numerics.param_dtype)

    def draw(path: tuple[Any, ...], variable: nnx.Variable) -> nnx.Variable:
        name, shape = path_name(path), variable.get_value().shape
        if variable.fill is not None:
            drawn = np.full(shape, variable.fill, np.float32)
        else:
            scheme = schemes.get(name.split(".")[0], schemes[""])
            drawn = scheme(variable.role, shape, path_bits(seed, name), name)
            if variable.init_scale != 1.0:
                drawn = drawn * np.float32(variable.init_scale)
        return variable.replace(jax.device_put(drawn.astype(dtype), sharding_of(drawn), may_alias=False))

    return nnx.to_pure_dict(jax.tree_util.tree_map_with_path(draw, params, is_leaf=_is_variable))


def abstract(params: nnx.State, config: Config) -> dict[str, Any]:
    """What `initialize` returns, as shapes: nothing is drawn, however large the model."""
    dtype = jnp.dtype(config.numerics.param_dtype)
    return nnx.to_pure_dict(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), params))


def _is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)
