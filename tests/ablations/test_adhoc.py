"""A question typed on the command line becomes an ablation like any other."""

from __future__ import annotations

import pytest

from ablations import adhoc, catalog, summary
from ablations.cells import cells
from ablations.lint import lint
from ablations.profiles import STANDARD, check_limits
from transformer.errors import ConfigError


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    monkeypatch.setattr(catalog, "_added", {})


def test_the_question_is_an_ablation_within_the_limits_of_every_profile():
    for profile in STANDARD:
        name = adhoc.register(["model.norm.kind=rmsnorm", "model.num_layers=1"])
        made = catalog.load(name)
        assert made.question == "What if model.norm.kind=rmsnorm, model.num_layers=1?"
        base, tried = cells(name, made, profile)
        assert (base.arm, tried.arm) == ("baseline", "tried")
        assert (tried.config.model.norm.kind, tried.config.model.num_layers) == ("rmsnorm", 1)
        check_limits(name, made, profile)
        assert not [warning for warning in lint(name, made, profile) if warning.level == "error"]
        (contrast,) = made.contrasts
        assert (contrast.type, contrast.test, contrast.base, contrast.expect) == (
            "equivalence",
            "tried",
            "baseline",
            None,
        )


def test_the_same_question_has_the_same_name():
    first, again, other = (adhoc.register([text]) for text in ("model.d_model=48", "model.d_model=48", "seed=1"))
    assert first == again != other and first.startswith("try-")


def test_its_page_says_how_to_ask_it_again(tmp_path):
    name = adhoc.register(["model.norm.kind=rmsnorm", "model.layers=both*2"])
    found = summary.summarize(summary.collect(name, "demo", tmp_path))
    asked = "python -m ablations try model.norm.kind=rmsnorm 'model.layers=both*2' --profile=demo"
    assert found["provenance"]["command"] == asked


def test_what_changes_nothing_is_refused():
    name = adhoc.register(["model.norm.kind=layernorm"])
    (error,) = [w for w in lint(name, catalog.load(name), "demo") if w.level == "error"]
    assert "no field" in error.message


def test_an_unknown_field_is_refused():
    name = adhoc.register(["model.norm.kimd=rmsnorm"])
    with pytest.raises(ConfigError, match=r'no config field "model\.norm\.kimd"\. Did you mean "model\.norm\.kind"'):
        cells(name, catalog.load(name), "demo")
