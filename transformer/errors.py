"""Errors meant for the person at the keyboard: one sentence with the field, the value and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can fix. The commands print it as one `error: ...` line and exit with `exit_code`."""

    exit_code = 2


class ConfigError(UserError):
    """A config names an unknown field, kind or type, or combines fields that exclude each other."""


class DataError(UserError):
    """A corpus is missing, empty, too small, or not what the config says it is."""


class CheckpointError(UserError):
    """A checkpoint cannot be written, or none in the directory can be read back intact."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ` Did you mean "x"?` for the closest known name, or an empty string."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not close:  # `model.norm.plcement`: compare the last part alone when the whole path is too far off
        leaf = name.rsplit(".", 1)[-1]
        leaves = {path.rsplit(".", 1)[-1]: path for path in known}
        close = [leaves[hit] for hit in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.6)]
    return f' Did you mean "{close[0]}"?' if close else ""
