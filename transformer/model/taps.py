"""`tap(name, x)`: a named place in the forward pass that can be read or replaced.

With no observer installed a tap returns its argument, so the compiled program is the same as without it.
Names are stable: `embedding`, `blocks.0.attention.weights`, `blocks.0.residual`, `logits`, ...
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax

Observer = Callable[[str, jax.Array], jax.Array]
_observer: contextvars.ContextVar[Observer | None] = contextvars.ContextVar("observer", default=None)


def tap(name: str, x: jax.Array) -> jax.Array:
    """Returns `x`, or what the installed observer makes of it."""
    observer = _observer.get()
    return x if observer is None else observer(name, x)


def observed() -> bool:
    """Whether an observer is installed."""
    return _observer.get() is not None


@contextlib.contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Routes every tap in the block through `observer(name, x) -> x`. Under `jax.jit`, enter it while tracing.

    Blocks nest: what an inner observer makes of a value is what the one around it gets.
    """
    around = _observer.get()
    token = _observer.set(observer if around is None else lambda name, x: around(name, observer(name, x)))
    try:
        yield
    finally:
        _observer.reset(token)


def capture(function: Callable[..., Any], *names: str) -> Callable[..., tuple[Any, dict[str, jax.Array]]]:
    """Wraps `function` so that it also returns the tapped values; with no names, all of them."""

    def wrapped(*args: Any, **kwargs: Any) -> tuple[Any, dict[str, jax.Array]]:
        seen: dict[str, jax.Array] = {}

        def observer(name: str, x: jax.Array) -> jax.Array:
            if not names or name in names:
                seen[name] = x
            return x

        with observing(observer):
            out = function(*args, **kwargs)
        if missing := set(names) - set(seen):
            raise KeyError(f"no tap is named {sorted(missing)}")
        return out, seen

    return wrapped


def replace(function: Callable[..., Any], **edits: Callable[[jax.Array], jax.Array]) -> Callable[..., Any]:
    """Wraps `function` so that the value at each named tap is replaced by `edit(value)`.

    Names hold dots, so they are passed as `replace(f, **{"blocks.0.attention.output": edit})`.

    Raises:
      KeyError: a name no tap carried during the call.
    """

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        reached = set()

        def observer(name: str, x: jax.Array) -> jax.Array:
            if name not in edits:
                return x
            reached.add(name)
            return edits[name](x)

        with observing(observer):
            out = function(*args, **kwargs)
        if missing := set(edits) - reached:
            raise KeyError(f"no tap is named {sorted(missing)}")
        return out

    return wrapped
