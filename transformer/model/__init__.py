"""The model room: `build(config)` gives an initialised model, `declare(config)` one without numbers."""

from __future__ import annotations

from typing import Any

from flax import nnx

from transformer.model.decoder import Decoder, PrefixDecoder
from transformer.model.encoder import Encoder
from transformer.model.encoder_decoder import EncoderDecoder, EncoderDecoderParameters
from transformer.model.initialization import initialize
from transformer.registry import Registry
from transformer.schema import Config

FAMILIES = Registry("model.family")
NO_SOURCE = ("data.source_length",)  # what a family with one stack does not read
FAMILIES.register("decoder", paper="Radford et al. 2018", unread=NO_SOURCE)(Decoder)
FAMILIES.register("encoder", paper="Devlin et al. 2019 (BERT)", unread=NO_SOURCE)(Encoder)
FAMILIES.register("prefix_decoder", paper="Raffel et al. 2020 (T5), section 3.2.1", unread=NO_SOURCE)(PrefixDecoder)
FAMILIES.register("encoder_decoder", parameters=EncoderDecoderParameters, paper="Vaswani et al. 2017")(EncoderDecoder)


def declare(config: Config, vocab_size: int = 0) -> nnx.Module:
    """The model as structure: every parameter has a shape, a dtype and a role, but no numbers.

    Args:
      vocab_size: rows of the embedding when `model.vocab_size` is 0; the byte vocabulary if neither is given.
    """
    if not (config.model.vocab_size or vocab_size):
        from transformer.data.vocabularies import Bytes

        vocab_size = Bytes.size
    return FAMILIES.build(config.model.family, config, config.model.vocab_size or vocab_size)


def split(model: nnx.Module) -> tuple[Any, nnx.State, nnx.State]:
    """(structure, parameters, mutable state such as running statistics); `nnx.merge` joins them again."""
    structure, params, state = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    return structure, params, state


def build(config: Config, vocab_size: int = 0, seed: int | None = None) -> nnx.Module:
    """The model with the initial weights of `seed` (by default the config's). `model(tokens)` gives logits."""
    structure, params, state = split(declare(config, vocab_size))
    seed = init_seed(config) if seed is None else seed
    return nnx.merge(structure, initialize(params, config, seed), nnx.to_pure_dict(state))


def init_seed(config: Config) -> int:
    """The seed of initial weights and dropout."""
    return config.seed if config.init_seed < 0 else config.init_seed


def data_seed(config: Config) -> int:
    """The seed of the order of windows."""
    return config.seed if config.data_seed < 0 else config.data_seed
