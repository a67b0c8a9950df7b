"""Norms beside the usual two: by length alone, without statistics, over the batch."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from transformer.errors import UserError
from transformer.model.initialization import parameter
from transformer.model.normalization import NORMS, Affine
from transformer.schema import Config, Norm, field

if TYPE_CHECKING:
    from transformer.model.context import Context


# --- No batch, no mean -------------------------------------------------------------------------------------------


@NORMS.register("scalenorm", paper="Nguyen & Salazar 2019")
class ScaleNorm(Affine):
    """Gives every token's vector one length: learned, and sqrt(width) at first."""

    def __init__(self, norm: Norm, width: int):
        super().__init__(norm, width)
        self.length = width**0.5
        self.gain = parameter((), "gain", fill=self.length) if norm.affine else None

    def normalize(self, x: jax.Array, context: Context | None) -> jax.Array:
        unit = x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True) + self.epsilon)
        return unit if self.gain is not None else unit * self.length


@dataclasses.dataclass(frozen=True)
class PartialRMSNormParameters:
    prmsnorm_share: float = field(
        0.25, "share of the channels, from the first, that the statistic is taken over; the paper takes 0.0625"
    )


def _a_share(config: Config) -> str | None:
    share = config.model.norm.prmsnorm_share
    if 0 < share <= 1:
        return None
    return f"model.norm.prmsnorm_share={share} must be above 0 and at most 1; 1 is rmsnorm."


@NORMS.register(
    "prmsnorm",
    parameters=PartialRMSNormParameters,
    paper="Zhang & Sennrich 2019, section 3.3 (pRMSNorm)",
    check=_a_share,
)
class PartialRMSNorm(Affine):
    """Divides all channels by the root mean square of the first few: an estimate of RMSNorm that reads less."""

    def __init__(self, norm: Norm, width: int):
        super().__init__(norm, width)
        self.read = math.ceil(width * norm.prmsnorm_share)

    def normalize(self, x: jax.Array, context: Context | None) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.square(x[..., : self.read]).mean(axis=-1, keepdims=True) + self.epsilon)


@dataclasses.dataclass(frozen=True)
class DyTParameters:
    dyt_alpha: float = field(0.5, "initial slope of the tanh")


@NORMS.register("dyt", parameters=DyTParameters, paper="Zhu et al. 2025 (Dynamic Tanh)")
class DynamicTanh(Affine):
    """tanh(alpha * x) with a learned alpha: bounded like a norm, without any statistic."""

    def __init__(self, norm: Norm, width: int):
        super().__init__(norm, width)
        self.alpha = parameter((), "gain", fill=norm.dyt_alpha)

    def normalize(self, x: jax.Array, context: Context | None) -> jax.Array:
        return jnp.tanh(self.alpha * x)


# --- Over the batch ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class BatchNormParameters:
    batchnorm_momentum: float = field(0.9, "share of the running statistics kept per training step")


def _momentum(config: Config) -> str | None:
    momentum = config.model.norm.batchnorm_momentum
    return None if 0 <= momentum < 1 else f"model.norm.batchnorm_momentum={momentum} must be at least 0 and below 1."


@NORMS.register(
    "batchnorm",
    parameters=BatchNormParameters,
    paper="Ioffe & Szegedy 2015",
    traits=("batch_dependent", "sees_the_future", "sees_padding"),
    check=_momentum,
)
class BatchNorm(Affine):
    """Statistics of each channel over all tokens of the batch, padding and later tokens included.

    In training the statistics are those of the (micro)batch, and running averages are kept as mutable model state;
    evaluation uses the averages.
    """

    axes: tuple[int, ...] = (0, 1)

    def __init__(self, norm: Norm, width: int):
        super().__init__(norm, width)
        self.momentum = norm.batchnorm_momentum
        self.mean = nnx.BatchStat(jnp.zeros(self.statistics_shape(norm, width)))
        self.variance = nnx.BatchStat(jnp.ones(self.statistics_shape(norm, width)))

    def statistics_shape(self, norm: Norm, width: int) -> tuple[int, ...]:
        """Shape of the running mean and of the running variance."""
        return (width,)

    def normalize(self, x_BTD: jax.Array, context: Context | None) -> jax.Array:
        if context is None or not context.train:
            mean, variance = self.running(context)
        else:
            mean, variance = self.of_batch(x_BTD, context)
        return (x_BTD - mean) * jax.lax.rsqrt(variance + self.epsilon)

    def counted(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        """Which tokens count, as [B, T, 1] of zeros and ones."""
        return jnp.ones((*x_BTD.shape[:2], 1), x_BTD.dtype)

    def of_batch(self, x_BTD: jax.Array, context: Context) -> tuple[jax.Array, jax.Array]:
        """Mean and variance over the tokens that count; moves the running statistics towards them."""
        counted_BT1 = self.counted(x_BTD, context)
        count = counted_BT1.sum(self.axes, keepdims=True)
        mean = (x_BTD * counted_BT1).sum(self.axes, keepdims=True) / jnp.maximum(count, 1)
        variance = (jnp.square(x_BTD - mean) * counted_BT1).sum(self.axes, keepdims=True) / jnp.maximum(count, 1)
        # Where nothing counts there is nothing to learn from.
        known_mean, known_variance = self.running(context)
        mean, variance = jnp.where(count > 0, mean, known_mean), jnp.where(count > 0, variance, known_variance)
        kept = self.momentum
        self.remember(kept * known_mean + (1 - kept) * mean, kept * known_variance + (1 - kept) * variance, context)
        return mean, variance

    def running(self, context: Context | None) -> tuple[jax.Array, jax.Array]:
        """Running mean and variance, in a shape that fits the input."""
        return self.mean.get_value(), self.variance.get_value()

    def remember(self, mean: jax.Array, variance: jax.Array, context: Context) -> None:
        """Stores new running statistics."""
        for variable, value in ((self.mean, mean), (self.variance, variance)):
            variable.set_value(jax.lax.stop_gradient(value).reshape(variable.get_value().shape))


@NORMS.register(
    "batchnorm_masked",
    parameters=BatchNormParameters,
    paper="Shen et al. 2020",
    traits=("batch_dependent", "sees_the_future"),
    check=_momentum,
)
class MaskedBatchNorm(BatchNorm):
    """As batchnorm, but padding (segment 0) does not count."""

    def counted(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        segments_BT = context.mask.query_segments_BT
        if segments_BT is None:
            return super().counted(x_BTD, context)
        return jnp.broadcast_to((segments_BT != 0)[..., None], (*x_BTD.shape[:2], 1)).astype(x_BTD.dtype)


@dataclasses.dataclass(frozen=True)
class TimeLocalParameters(BatchNormParameters):
    batchnorm_positions: int = field(256, "positions with running statistics of their own; later ones use the last")


def _enough_to_compare(config: Config) -> str | None:
    train, length = config.train, config.data.sequence_length
    if config.model.norm.batchnorm_positions < length:
        return (
            f"keeps statistics of model.norm.batchnorm_positions={config.model.norm.batchnorm_positions} positions, "
            f"but data.sequence_length={length}; raise the former."
        )
    if train.batch_size // train.accumulate < 2:
        return "compares the rows of a microbatch, which has only one; raise train.batch_size or lower accumulate."
    return _momentum(config)


@NORMS.register(
    "batchnorm_time_local",
    parameters=TimeLocalParameters,
    paper="Cooijmans et al. 2017, section 3",
    traits=("batch_dependent",),
    check=_enough_to_compare,
)
class TimeLocalBatchNorm(MaskedBatchNorm):
    """Statistics over the batch for each position by itself, without padding: no token sees a later one."""

    axes = (0,)

    def statistics_shape(self, norm: Norm, width: int) -> tuple[int, ...]:
        return (norm.batchnorm_positions, width)

    def running(self, context: Context | None) -> tuple[jax.Array, jax.Array]:
        if context is None:
            raise ValueError("batchnorm_time_local needs the context of the forward pass: it holds the positions")
        at_BT = jnp.minimum(context.positions_BT, self.mean.get_value().shape[0] - 1)
        return self.mean.get_value()[at_BT], self.variance.get_value()[at_BT]

    def remember(self, mean_1TD: jax.Array, variance_1TD: jax.Array, context: Context) -> None:
        if context.positions_BT.shape[0] != 1:
            raise UserError(
                "model.norm.kind=batchnorm_time_local trains only where all rows share their positions: "
                "rows packed from several documents do not."
            )
        for variable, value in ((self.mean, mean_1TD), (self.variance, variance_1TD)):
            known = variable.get_value()
            variable.set_value(known.at[context.positions_BT[0]].set(jax.lax.stop_gradient(value)[0], mode="drop"))
