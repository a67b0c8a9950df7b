"""Registries: choices as data, and errors that list what is allowed."""

from __future__ import annotations

import dataclasses
import fnmatch

import pytest

from transformer import config as config_module
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


def nested_bowl(monkeypatch) -> type:
    """A section whose choice has an entry that brings a choice, whose entry brings a parameter."""

    @dataclasses.dataclass(frozen=True)
    class Seed:
        count: int = field(5, "how many")

    @dataclasses.dataclass(frozen=True)
    class Core:
        core: str = choice("none", "test:CORES", "what is inside")

    registries = {"test:FRUIT": Registry("bowl.fruit"), "test:CORES": Registry("bowl.core")}
    registries["test:FRUIT"].register("none")(lambda: None)
    registries["test:FRUIT"].register("apple", parameters=Core)(lambda: None)
    registries["test:CORES"].register("none")(lambda: None)
    registries["test:CORES"].register("seeds", parameters=Seed)(lambda: None)
    monkeypatch.setattr(schema_module, "load_registry", lambda spec: registries[spec])

    @dataclasses.dataclass(frozen=True)
    class Bowl(Section):
        fruit: str = choice("none", "test:FRUIT", "what is in it")

    return Bowl


def test_a_parameter_may_be_a_choice_with_parameters(monkeypatch):
    cls = nested_bowl(monkeypatch)
    found = {name: readers for name, (_, readers) in entry_parameters(cls).items()}
    assert found == {"core": {"fruit": frozenset({"apple"})}, "count": {"core": frozenset({"seeds"})}}
    assert [(info.path, info.kinds, info.used_by) for info in schema(cls, "bowl.")] == [
        ("bowl.fruit", ("none", "apple"), ""),
        ("bowl.core", ("none", "seeds"), "bowl.fruit=apple"),
        ("bowl.count", (), "bowl.core=seeds"),
    ]
    assert cls(fruit="apple").core == "none" and cls(fruit="apple").count == 5


def test_a_nested_choice_is_validated_like_any_other(monkeypatch):
    cls = nested_bowl(monkeypatch)

    def build(**values):
        return config_module._build(cls, "bowl.", {f"bowl.{name}": value for name, value in values.items()})

    assert build().options == ()
    assert build(fruit="apple").options == ()
    assert build(fruit="apple", core="seeds").options == (("core", "seeds"),)
    assert build(fruit="apple", core="seeds", count=3).options == (("core", "seeds"), ("count", 3))
    for wrong, message in [
        ({"fruit": "apple", "core": "sed"}, "bowl.core='sed' is not one of: none, seeds."),
        ({"core": "seeds"}, "bowl.core='seeds' has no effect: only bowl.fruit=apple reads it, and it is 'none'."),
        ({"fruit": "apple", "count": 3}, "only bowl.core=seeds reads it, and it is 'none'."),
        ({"count": 3}, "only bowl.core=seeds reads it, and that one has no effect here."),
    ]:
        with pytest.raises(ConfigError) as caught:
            build(**wrong)
        assert message in str(caught.value)


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
        for name, (parameter, _) in entry_parameters(cls).items():
            spec = parameter.metadata.get("registry")
            if spec:
                found[prefix + name] = (spec, load_registry(spec))

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
