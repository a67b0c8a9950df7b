"""How scores become weights, and where weight goes that no key deserves (sinks).

A rule maps scores [B, H, T, S], already filled with the most negative number where a key may not be seen, to weights
of the same shape that are exactly zero there. Counts are over the keys a query *sees*, not over the length of
the array: padding, packing and the capacity of a cache change nothing.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from transformer.model.initialization import parameter
from transformer.registry import Registry
from transformer.schema import Attention, Config, field

WEIGHTS = Registry("model.attention.weights")
SINKS = Registry("model.attention.sinks")


@dataclasses.dataclass(frozen=True)
class Sight:
    """Which keys each query sees.

    Attributes:
      allowed_B1TS: booleans (B may be 1), or None when every key is visible.
      query_positions_BT, key_positions_BS: where queries and keys stand.
    """

    allowed_B1TS: jax.Array | None
    query_positions_BT: jax.Array
    key_positions_BS: jax.Array

    def visible_B1TS(self) -> jax.Array:
        """Whether query t sees key s."""
        if self.allowed_B1TS is not None:
            return self.allowed_B1TS
        return jnp.ones((1, 1, self.query_positions_BT.shape[1], self.key_positions_BS.shape[1]), bool)

    def count_B1T1(self) -> jax.Array:
        """How many keys query t sees, and one where it sees none."""
        return jnp.maximum(self.visible_B1TS().sum(axis=-1, keepdims=True), 1).astype(jnp.float32)

    def uniform_B1TS(self) -> jax.Array:
        """Equal weights over the visible keys."""
        return self.visible_B1TS() / self.count_B1T1()

    def at_distance_B1TS(self, offset: int) -> jax.Array:
        """Whether key s is visible and stands exactly `offset` positions before query t."""
        distance_BTS = self.query_positions_BT[:, :, None] - self.key_positions_BS[:, None, :]
        return self.visible_B1TS() & (distance_BTS == offset)[:, None]


# --- Sinks -------------------------------------------------------------------------------------------------------


def _softmax_only(config: Config) -> str | None:
    weights = config.model.attention.weights
    if weights == "softmax1":
        return "adds a sink to weights=softmax1, which is softmax with a zero_key sink already; use weights=softmax."
    if weights != "softmax":
        return f"takes a share of a softmax, but weights={weights} is none; remove the sink or use weights=softmax."
    return None


@SINKS.register("none")
def no_sink(num_heads: int) -> None:
    """All weight goes to keys."""
    return None


@SINKS.register("learned", paper="OpenAI 2025 (gpt-oss)", check=_softmax_only)
class LearnedSink(nnx.Module):
    """One trained score per head, with nothing to read behind it; starts at zero."""

    def __init__(self, num_heads: int):
        self.logit = parameter((num_heads,), "bias")

    def __call__(self, dtype: jnp.dtype) -> jax.Array:
        return self.logit.astype(dtype)[:, None, None]


@SINKS.register("zero_key", paper="Xiao et al. 2023 (zero sink)", check=_softmax_only)
class ZeroKey(nnx.Module):
    """One more key, of zeros, whose value is zero: its score is always zero."""

    def __init__(self, num_heads: int):
        del num_heads

    def __call__(self, dtype: jnp.dtype) -> jax.Array:
        return jnp.zeros((1, 1, 1), dtype)


@jax.custom_vjp
def softmax(scores_BHTS: jax.Array) -> jax.Array:
    """exp(s_j) / sum_k exp(s_k). The gradient is written out: XLA compiles it in half the time of the derived one."""
    return _saved_weights(scores_BHTS)[0]


def _saved_weights(scores_BHTS: jax.Array) -> tuple[jax.Array, jax.Array]:
    weights_BHTS = jax.nn.softmax(scores_BHTS, axis=-1)
    return weights_BHTS, weights_BHTS


def _softmax_gradient(weights_BHTS: jax.Array, d_BHTS: jax.Array) -> tuple[jax.Array]:
    return (weights_BHTS * (d_BHTS - (d_BHTS * weights_BHTS).sum(axis=-1, keepdims=True)),)


softmax.defvjp(_saved_weights, _softmax_gradient)


def softmax_with_sink(scores_BHTS: jax.Array, sink_H11: jax.Array) -> jax.Array:
    """exp(s_j) / (exp(sink) + sum_k exp(s_k)), without overflow; rows sum to less than one."""
    highest = jnp.maximum(scores_BHTS.max(axis=-1, keepdims=True), sink_H11)
    highest = jax.lax.stop_gradient(highest)
    exp_BHTS = jnp.exp(scores_BHTS - highest)
    return exp_BHTS / (exp_BHTS.sum(axis=-1, keepdims=True) + jnp.exp(sink_H11 - highest))


# --- Rules -------------------------------------------------------------------------------------------------------


class WeightRule(nnx.Module):
    """Scores to weights.

    Attributes:
      uses_scores: False for controls that look at positions only; queries and keys are then not built at all.
      query_init_scale: factor on the initial standard deviation of W_Q.
    """

    uses_scores = True
    query_init_scale = 1.0

    def __init__(self, attention: Attention):
        del attention

    def __call__(self, scores_BHTS: jax.Array, sight: Sight) -> jax.Array:
        """Weights [B, H, T, S]."""
        raise NotImplementedError


@WEIGHTS.register("softmax", paper="Vaswani et al. 2017, equation 1", traits=("row_stochastic",))
class Softmax(WeightRule):
    """exp(s_j) / sum_k exp(s_k). A query that sees no key weighs all alike, which keeps it finite."""

    def __init__(self, attention: Attention):
        self.sink = SINKS.build(attention.sinks, attention.num_heads)

    def __call__(self, scores_BHTS: jax.Array, sight: Sight) -> jax.Array:
        if self.sink is None:
            return softmax(scores_BHTS)
        return softmax_with_sink(scores_BHTS, self.sink(scores_BHTS.dtype))


@WEIGHTS.register("softmax1", paper="Miller 2023 (off by one)")
class Softmax1(WeightRule):
    """exp(s_j) / (1 + sum_k exp(s_k)): a head may attend to nothing."""

    def __call__(self, scores_BHTS: jax.Array, sight: Sight) -> jax.Array:
        return softmax_with_sink(scores_BHTS, jnp.zeros((1, 1, 1), scores_BHTS.dtype))


@WEIGHTS.register("sigmoid", paper="Ramapuram et al. 2024")
class Sigmoid(WeightRule):
    """Every key by its own gate, without competition; the output grows with the number of keys."""

    def __call__(self, scores_BHTS: jax.Array, sight: Sight) -> jax.Array:
        return jax.nn.sigmoid(scores_BHTS)


@WEIGHTS.register("sigmoid_bias", paper="Ramapuram et al. 2024, section 3")
class SigmoidBias(WeightRule):
    """sigmoid(s_j - ln n) over n visible keys: weights start near 1/n each."""

    def __call__(self, scores_BHTS: jax.Array, sight: Sight) -> jax.Array:
        return jax.nn.sigmoid(scores_BHTS - jnp.log(sight.count_B1T1()))


@WEIGHTS.register("relu", paper="Wortsman et al. 2023 (ReLU attention)", traits=("sparse",))
class Relu(WeightRule):
    """max(s_j, 0) / n over n visible keys."""

    def __call__(self, scores_BHTS: jax.Array, sight: Sight) -> jax.Array:
        return jax.nn.relu(scores_BHTS) / sight.count_B1T1()


@WEIGHTS.register("raw", paper="Katharopoulos et al. 2020, without feature map and normaliser")
class Raw(WeightRule):
    """The scores themselves: negative and unbounded weights."""

    def __call__(self, scores_BHTS: jax.Array, sight: Sight) -> jax.Array:
        return jnp.where(sight.visible_B1TS(), scores_BHTS, 0.0)


@WEIGHTS.register("raw_mean")
class RawMean(Raw):
    """The scores divided by the number of visible keys."""

    def __call__(self, scores_BHTS: jax.Array, sight: Sight) -> jax.Array:
        return super().__call__(scores_BHTS, sight) / sight.count_B1T1()


@dataclasses.dataclass(frozen=True)
class ShapedParameters:
    zero_query_init: bool = field(True, "W_Q starts at zero, so that shaped attention starts as the identity")


def _across(config: Config) -> str | None:
    """Refuses to look for a position of the text among those of a source, which are no common line."""
    from transformer.model.cross_attention import CROSS_ATTENTIONS
    from transformer.model.layer_pattern import has_cross_attention

    model = config.model
    if has_cross_attention(model) and "no_scores" not in CROSS_ATTENTIONS[model.cross_attention].traits:
        return (
            f"looks for a token by its position, which cross_attention={model.cross_attention} cannot do in a source; "
            "use model.cross_attention=pooled or none."
        )
    return None


def _keys_that_move(config: Config) -> str | None:
    from transformer.model.positions import POSITIONS

    attention, kind = config.model.attention, config.model.position.kind
    if "on_scores" in POSITIONS[kind].traits:
        return (
            f"starts as the identity where attention without queries is uniform, which model.position.kind={kind} "
            "prevents; use another kind."
        )
    if (problem := _across(config)) is not None:
        return problem
    if attention.zero_query_init and attention.tie in ("qk", "qkv"):
        return (
            f"starts W_Q at zero, and with tie={attention.tie} keys are zero too and no gradient would ever move them; "
            "set model.attention.zero_query_init=False or tie=none."
        )
    return None


@WEIGHTS.register(
    "shaped",
    parameters=ShapedParameters,
    paper="Noci et al. 2023; He & Hofmann 2023, section 4.1",
    traits=("identity_at_init", "zero_gradient_at_init"),
    check=_keys_that_move,
)
class Shaped(WeightRule):
    """alpha I + beta softmax(s) - gamma C, where C weighs visible keys alike: made to train without skip connections.

    One alpha, beta and gamma per head, trained, all starting at one. With W_Q = 0 the last two terms cancel and
    attention starts as the identity; W_K then has no gradient at the very first step.
    """

    def __init__(self, attention: Attention):
        self.query_init_scale = 0.0 if attention.zero_query_init else 1.0
        self.alpha, self.beta, self.gamma = (parameter((attention.num_heads,), "gain") for _ in range(3))

    def __call__(self, scores_BHTS: jax.Array, sight: Sight) -> jax.Array:
        alpha, beta, gamma = (
            gain.astype(scores_BHTS.dtype)[:, None, None] for gain in (self.alpha, self.beta, self.gamma)
        )
        identity = sight.at_distance_B1TS(0)
        return alpha * identity + beta * softmax(scores_BHTS) - gamma * sight.uniform_B1TS()


# What weights that need no queries and keys do not read.
NO_SCORES = tuple(f"model.attention.{name}" for name in ("scale", "qk_norm", "tie", "soft_cap"))


def _without_scores(config: Config) -> str | None:
    from transformer.model.positions import POSITIONS

    kind = config.model.position.kind
    if "on_scores" in POSITIONS[kind].traits:
        return f"builds no scores, so model.position.kind={kind}, which acts on scores, would do nothing; use none."
    return None


@WEIGHTS.register("uniform", traits=("row_stochastic", "no_scores"), check=_without_scores, unread=NO_SCORES)
class Uniform(WeightRule):
    """Equal weights over the visible keys, without queries, keys and positions: a control."""

    uses_scores = False

    def __call__(self, scores_BHTS: jax.Array, sight: Sight) -> jax.Array:
        return jnp.broadcast_to(sight.uniform_B1TS(), scores_BHTS.shape)


@dataclasses.dataclass(frozen=True)
class OffsetParameters:
    offset: int = field(1, "how many positions back every query looks")


def _backwards(config: Config) -> str | None:
    offset = config.model.attention.offset
    if offset < 0:
        return f"looks back, but offset={offset} is negative; use 0 or more."
    return _across(config) or _without_scores(config)


@WEIGHTS.register(
    "fixed_offset",
    parameters=OffsetParameters,
    traits=("no_scores", "one_key_per_query"),
    check=_backwards,
    unread=NO_SCORES,
)
class FixedOffset(WeightRule):
    """All weight on the key `offset` positions back, and none where there is no such key: a control."""

    uses_scores = False

    def __init__(self, attention: Attention):
        self.offset = attention.offset

    def __call__(self, scores_BHTS: jax.Array, sight: Sight) -> jax.Array:
        return jnp.broadcast_to(sight.at_distance_B1TS(self.offset).astype(jnp.float32), scores_BHTS.shape)
