"""Assignments typed on the command line."""

from __future__ import annotations

import pytest

from transformer.command_line import _check_names, assignments
from transformer.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [("rmsnorm", "rmsnorm"), ("96", 96), ("1e-3", 1e-3), ("True", True), ("('a', 'b')", ("a", "b")), ("a=b", "a=b")],
)
def test_values_are_read_as_python_or_text(text, value):
    assert assignments([f"model.norm.kind={text}"]) == {"model.norm.kind": value}


def test_free_text_stays_text():
    assert assignments(["prompt=12", "beams=12"], prefix="decode.") == {"decode.prompt": "12", "decode.beams": 12}


def test_an_assignment_needs_a_value():
    with pytest.raises(ConfigError, match=r"'model\.norm\.kind' is not FIELD=VALUE, for example"):
        assignments(["model.norm.kind"])


def test_a_negative_number_is_a_value_not_a_flag():
    _check_names(["-1", "-0.5"])
    with pytest.raises(ConfigError, match=r"There is no flag --x1\."):
        _check_names(["-x1"])
