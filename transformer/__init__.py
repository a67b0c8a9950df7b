"""One switchable transformer, and everything needed to train it, take it apart and look inside.

from transformer import Config, build
model = build(Config())
logits = model(tokens)  # [batch, time, vocabulary]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformer.config import replace, resolve
from transformer.schema import Config

if TYPE_CHECKING:
    from transformer.model import build
    from transformer.training.run import load

__all__ = ["Config", "build", "load", "replace", "resolve"]

_LAZY = {"build": "transformer.model", "load": "transformer.training.run"}  # these import jax


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'transformer' has no attribute {name!r}")
