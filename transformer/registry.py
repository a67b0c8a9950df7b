"""Choices as data: every exclusive choice is one config field, looked up in one registry.

A registry lives in the room that owns the choice (`normalization.py` knows all norms and nothing else does).
An entry carries its builder, the parameters only it reads (a dataclass), the paper, and its traits: facts that
generic tests need, such as "causal_safe" or "batch_dependent".
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, ParamSpec, TypeVar

from transformer.errors import ConfigError, did_you_mean

P = ParamSpec("P")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One variant.

    Attributes:
      name: the value the config field takes.
      build: makes the part; its arguments are the same for every entry of one registry.
      parameters: a dataclass whose fields join the config section of the choice, or None.
      paper: where the variant comes from.
      traits: facts generic tests rely on.
      check: called with the whole resolved config; returns what is wrong with the combination, or None.
      unread: config fields that have no effect beside this entry, by their paths.
    """

    name: str
    build: Callable[..., Any]
    parameters: type | None = None
    paper: str = ""
    traits: frozenset[str] = frozenset()
    check: Callable[[Any], str | None] | None = None
    unread: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """The first line of the builder's docstring."""
        return (self.build.__doc__ or "").strip().split("\n")[0]


class Registry(Mapping[str, Entry]):
    """The allowed values of one config field.

    Args:
      field: the dotted path of the field, for error messages.
      other: makes the entry of a value that is no name, such as a number; returns None for what means nothing.
      other_help: what those values are, in words, for error messages.

    Attributes:
      registered: entries of all registries so far.
    """

    registered: ClassVar[int] = 0

    def __init__(self, field: str, other: Callable[[Any], Entry | None] | None = None, other_help: str = ""):
        self.field, self._other, self._other_help = field, other, other_help
        self._entries: dict[str, Entry] = {}

    def register(
        self,
        name: str,
        *,
        parameters: type | None = None,
        paper: str = "",
        traits: tuple[str, ...] = (),
        check: Callable[[Any], str | None] | None = None,
        unread: tuple[str, ...] = (),
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorates a builder (a class or a function) as the entry `name`."""
        if name in self._entries:
            raise ValueError(f"{self.field} already has an entry {name!r}")

        def add(build: Callable[..., Any]) -> Callable[..., Any]:
            self._entries[name] = Entry(name, build, parameters, paper, frozenset(traits), check, unread)
            Registry.registered += 1
            return build

        return add

    def names(self, *names: str) -> None:
        """Entries that are nothing but their name."""
        for name in names:
            self.register(name)(lambda name=name: name)

    def __getitem__(self, name: Any) -> Entry:
        return self.find(name, self.field)

    def find(self, name: Any, field: str) -> Entry:
        """The entry of a value, blaming `field` where there is none: one registry may serve several fields."""
        if name in self._entries:
            return self._entries[name]
        if self._other is not None and (entry := self._other(name)) is not None:
            return entry
        allowed = ", ".join(self._entries) + (f", or {self._other_help}" if self._other_help else "")
        raise ConfigError(f"{field}={name!r} is not one of: {allowed}.{did_you_mean(name, self._entries)}")

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def build(self, name: Any, *args: Any, **kwargs: Any) -> Any:
        """Builds the part that the entry `name` stands for."""
        return self[name].build(*args, **kwargs)


def until_registered(function: Callable[P, T]) -> Callable[P, T]:
    """Caches what a function says of the registries until any of them gets another entry."""

    found: Callable[..., T] = functools.cache(lambda registered, *args, **kwargs: function(*args, **kwargs))

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return found(Registry.registered, *args, **kwargs)

    return call
