"""Which sublayers each block has.

`model.layers` is a comma list of `both`, `attention` and `ffn`, each with an optional `*COUNT`, repeated until
`model.num_layers` blocks are named:

  both                           the ordinary transformer
  attention                      attention only
  attention,ffn                  as `both` with half the layers, but every sublayer is a block of its own
  attention*2,both*4,ffn*2       a sandwich (Press et al. 2020) of eight blocks
"""

from __future__ import annotations

from typing import Any

from transformer.errors import ConfigError
from transformer.registry import Entry, Registry
from transformer.schema import Config, Model


def _pattern(text: Any) -> Entry | None:
    """The entry of a list; a single name is looked up as usual."""
    if not isinstance(text, str) or not any(mark in text for mark in ",*"):
        return None
    kinds: list[str] = []
    for piece in text.split(","):
        name, star, count = (part.strip() for part in piece.partition("*"))
        if star and not (count.isdecimal() and int(count)):
            raise ConfigError(f"model.layers={text!r}: {piece.strip()!r} needs a whole number above 0 after the *.")
        kinds += [LAYERS[name].name] * int(count or 1)
    return Entry(text, lambda: tuple(kinds), paper="Press et al. 2020", check=_fits)


def _fits(config: Config) -> str | None:
    model = config.model
    kinds = LAYERS.build(model.layers)
    if model.num_layers % len(kinds):
        return f"names {len(kinds)} layers, and model.num_layers={model.num_layers} is no multiple of that."
    if "ffn" in kinds and model.ffn.kind == "none":
        return "has layers of a feed-forward network alone, but model.ffn.kind=none removes it."
    return None


LAYERS = Registry("model.layers", other=_pattern, other_help="a comma list of them, such as attention,both*3")
LAYERS.register("both", paper="Vaswani et al. 2017")(lambda: ("both",))
LAYERS.register("attention", paper="Elhage et al. 2021")(lambda: ("attention",))
LAYERS.register("ffn", traits=("tokens_apart",), check=_fits)(lambda: ("ffn",))


def layer_kinds(model: Model) -> tuple[str, ...]:
    """`both`, `attention` or `ffn` for each block."""
    kinds = LAYERS.build(model.layers)
    return kinds * (model.num_layers // len(kinds))


def num_sublayers(model: Model) -> int:
    """Residual branches in the whole stack."""
    with_ffn, reading = model.ffn.kind != "none", has_cross_attention(model)
    return sum((kind != "ffn") * (1 + reading) + (kind != "attention" and with_ffn) for kind in layer_kinds(model))


def has_cross_attention(model: Model) -> bool:
    """Whether every layer with attention also reads an encoder."""
    return model.family == "encoder_decoder" and model.cross_attention != "none"


def usual_depth(model: Model) -> int:
    """Residual branches of a stack of this many whole blocks, at least one block: 2 each, 3 with cross-attention."""
    return (2 + has_cross_attention(model)) * max(1, model.num_layers)
