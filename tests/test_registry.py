"""Registries: choices as data, and errors that list what is allowed."""

from __future__ import annotations

import dataclasses
import fnmatch

import pytest

from transformer import schema as schema_module
from transformer.config import schema
from transformer.errors import ConfigError, did_you_mean
from transformer.registry import Entry, Registry
from transformer.schema import Section, choice, entry_parameters, field, load_registry


@pytest.fixture
def fruit() -> Registry:
    registry = Registry("bowl.fruit")

    @registry.register("apple", paper="Newton 1687", traits=("falls",))
    class Apple:
        """Round and red.

        More about apples.
        """

        def __init__(self, size):
            self.size = size

    registry.register("none")(lambda size: None)
    return registry


def test_an_entry_builds_its_part(fruit):
    assert fruit.build("apple", size=3).size == 3
    assert fruit.build("none", 3) is None
    assert list(fruit) == ["apple", "none"] and len(fruit) == 2 and "apple" in fruit and "pear" not in fruit


def test_an_entry_carries_what_is_known_about_it(fruit):
    entry = fruit["apple"]
    assert (entry.name, entry.paper, entry.traits) == ("apple", "Newton 1687", frozenset({"falls"}))
    assert entry.summary == "Round and red." and fruit["none"].summary == ""
    assert isinstance(entry, Entry) and entry.check is None and entry.parameters is None


def test_an_unknown_name_lists_the_allowed_ones(fruit):
    with pytest.raises(ConfigError) as caught:
        fruit.build("aple", 3)
    assert str(caught.value) == "bowl.fruit='aple' is not one of: apple, none. Did you mean \"apple\"?"
    with pytest.raises(ConfigError, match=r"bowl\.fruit='xyz' is not one of: apple, none\.$"):
        _ = fruit["xyz"]


def test_other_values_than_names():
    def number(value):
        return Entry("number", lambda: value) if isinstance(value, float) else None

    registry = Registry("bowl.*.weight", other=number, other_help="a number")
    registry.register("heavy")(lambda: 9.0)
    assert registry.build(2.5) == 2.5 and registry.build("heavy") == 9.0 and list(registry) == ["heavy"]
    with pytest.raises(ConfigError) as caught:
        registry.find("heavi", "bowl.apple.weight")
    wanted = "bowl.apple.weight='heavi' is not one of: heavy, or a number. Did you mean \"heavy\"?"
    assert str(caught.value) == wanted


def test_a_name_is_given_once(fruit):
    with pytest.raises(ValueError, match=r"bowl\.fruit already has an entry 'apple'"):
        fruit.register("apple")


def test_names_are_compared_as_a_whole_first_and_by_their_last_part_then():
    known = ["model.norm.placement", "model.norm.kind", "train.steps"]
    assert did_you_mean("model.norm.plcement", known) == ' Did you mean "model.norm.placement"?'
    assert did_you_mean("placement", known) == ' Did you mean "model.norm.placement"?'
    assert did_you_mean("zzz", known) == ""
    assert did_you_mean("x", []) == ""


# --- Parameters that entries bring -------------------------------------------------------------------------------


def bowl(monkeypatch, first_default, second_default) -> type:
    """A section whose choice has two entries that share the parameter `size`."""

    @dataclasses.dataclass(frozen=True)
    class First:
        size: int = field(first_default, "how big")

    @dataclasses.dataclass(frozen=True)
    class Second:
        size: int = field(second_default, "how big")
        ripe: bool = field(True, "whether it can be eaten")

    registry = Registry("bowl.fruit")
    registry.register("plum", parameters=First)(lambda: None)
    registry.register("pear", parameters=Second)(lambda: None)
    registry.register("none")(lambda: None)
    monkeypatch.setattr(schema_module, "load_registry", lambda spec: registry)

    @dataclasses.dataclass(frozen=True)
    class Bowl(Section):
        fruit: str = choice("none", "test:FRUIT", "what is in it")

    return Bowl


def test_entries_may_share_a_parameter(monkeypatch):
    cls = bowl(monkeypatch, 3, 3)
    found = entry_parameters(cls)
    assert {name: readers for name, (_, readers) in found.items()} == {
        "size": {"fruit": frozenset({"plum", "pear"})},
        "ripe": {"fruit": frozenset({"pear"})},
    }
    assert cls(fruit="pear").size == 3 and cls(fruit="pear", options=(("size", 9),)).size == 9


def test_entries_that_share_a_parameter_agree_on_its_default(monkeypatch):
    with pytest.raises(ValueError, match=r"Bowl\.size has two defaults"):
        entry_parameters(bowl(monkeypatch, 3, 4))


# --- All registries of the schema --------------------------------------------------------------------------------


def registries() -> dict[str, tuple[str, Registry]]:
    """Path of the choice field -> (spec, registry)."""
    found = {}

    def walk(cls, prefix):
        for f in dataclasses.fields(cls):
            spec = f.metadata.get("registry")
            if spec:
                found[prefix + f.name] = (spec, load_registry(spec))
            elif isinstance(f.default_factory, type) and issubclass(f.default_factory, Section):
                walk(f.default_factory, f"{prefix}{f.name}.")

    walk(schema_module.Config, "")
    return found


def test_every_choice_field_points_at_its_registry():
    assert registries().keys() == {info.path for info in schema() if info.kinds}
    for path, (_, registry) in registries().items():
        assert fnmatch.fnmatch(path, registry.field) or path.startswith("numerics."), path
        for name, entry in registry.items():
            assert entry.name == name and (callable(entry.build) or entry.build == name)


def test_parameters_of_entries_explain_themselves():
    for path, (_, registry) in registries().items():
        for entry in registry.values():
            for parameter in dataclasses.fields(entry.parameters) if entry.parameters else ():
                assert parameter.metadata["help"], f"{path}={entry.name}: {parameter.name}"
