"""The report's data: made complete and printable before anything is drawn or written.

A report is rendered from whatever exists so far, and from text nobody vetted. Here every absent list becomes empty,
every number that is not finite becomes None, and characters that no file format accepts are replaced.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from transformer.errors import UserError

POINTS = 100  # a curve carries at most this many points a seed

_TOP: dict[str, Any] = {
    "name": "unnamed", "question": "", "profile": "", "scale": "", "verdicts": True,
    "matched": [], "headline": "", "progress": {}, "conditions": [], "claims": [], "decisions": [], "arms": [],
    "noise": [], "checks": [], "provenance": {}, "measured": [],
}  # fmt: skip
_PROGRESS: dict[str, Any] = {
    "planned": 0, "done": 0, "diverged": 0, "failed": 0, "missing": 0, "tampered": [],
}  # fmt: skip
_CONDITION: dict[str, Any] = {
    "condition": "default", "note": "", "scale": "", "metric": "loss", "better": "lower", "unit": "", "references": [],
    "control": "", "passed": None,
}  # fmt: skip
_CLAIM: dict[str, Any] = {
    "claim": "", "statement": "", "departure": "", "kind": "", "proved": False, "prior": "", "surprise": False,
    "literature": [], "verdict": "inconclusive", "reduced": False, "sentence": "", "decisions": [],
}  # fmt: skip
_DECISION: dict[str, Any] = {
    "claim": "", "condition": "default", "type": "superiority", "test": "", "base": "", "arms": [],
    "metric": "loss", "unit": "", "margin": None, "better": "lower", "verdict": "inconclusive", "label": "",
    "reason": "", "remedy": "", "sentence": "", "estimate": None, "estimate_name": "difference",
    "estimate_title": "difference", "interval90": None, "interval95": None, "n": 0, "p": None, "p_adjusted": None,
    "q": None, "counter_p": None, "counter_p_adjusted": None, "against": False, "method": "", "sd": None,
    "rho": None, "detectable": None, "diverged": "", "median": False, "downgrades": [], "prior": "",
    "contrast_hash": "", "registered": "", "check": "", "paired": [],
}  # fmt: skip
_ARM: dict[str, Any] = {
    "arm": "", "condition": "default", "label": "", "note": "", "baseline": False, "overrides": {},
    "parameters": None, "components": {}, "flops_per_token": None, "tokens": None, "learning_rate": None,
    "edge": False, "tuning": [], "members": [], "confounds": {},
}  # fmt: skip
_TUNING: dict[str, Any] = {
    "learning_rate": None, "seed": 0, "value": None, "state": "missing", "broken": False, "initial": None,
}  # fmt: skip
_MEMBER: dict[str, Any] = {
    "seed": 0, "twin": False, "learning_rate": None, "state": "missing", "broken": False, "error": "",
    "diverged_at": None, "metrics": {}, "initial": None, "seconds": None, "tokens_per_second": None, "curve": [],
    "train_curve": [],
}  # fmt: skip
_CONFOUNDS: dict[str, Any] = {
    "config": [], "parameters_only_base": [], "parameters_only_arm": [], "shape_changed": [],
    "decay_changed": [], "init_changed": [],
}  # fmt: skip
_NOISE: dict[str, Any] = {
    "condition": "default", "unit": "", "sigma": None, "interval": None, "n": 0, "note": "", "mean": None,
    "mean_interval": None, "read": "", "arm": "", "baseline": "", "learning_rate": None, "metric": "loss",
    "pairs": {}, "lost": [],
}  # fmt: skip
_PAIR: dict[str, Any] = {"seed": 0, "test": None, "base": None}
_DOWNGRADE: dict[str, Any] = {"reason": "", "remedy": ""}
_CHECK: dict[str, Any] = {"claim": "", "name": "", "passed": False, "sabotage_caught": None, "detail": ""}
_LITERATURE: dict[str, Any] = {"source": "", "finding": "", "status": "unverified"}
_PROVENANCE: dict[str, Any] = {
    "command": "", "git": "", "python": "", "packages": {}, "device": "", "fingerprint": "", "data": "",
    "member_seconds": None,
}  # fmt: skip

_TABLES = {
    "conditions": _CONDITION,
    "claims": _CLAIM,
    "decisions": _DECISION,
    "arms": _ARM,
    "noise": _NOISE,
    "checks": _CHECK,
}


def complete(data: Mapping[str, Any]) -> dict[str, Any]:
    """The data with every key of the contract, strict JSON throughout, and curves of at most 100 points.

    Raises:
      UserError: the data is not a dictionary, or holds something JSON does not know.
    """
    if not isinstance(data, Mapping):
        raise UserError(f"A report is rendered from a dictionary, not from {type(data).__name__}.")
    report = _filled(_clean(data), _TOP)
    report["progress"] = _filled(report["progress"], _PROGRESS)
    report["provenance"] = _filled(report["provenance"], _PROVENANCE)
    for key, defaults in _TABLES.items():
        report[key] = [_filled(row, defaults) for row in report[key]]
    stated = {row["condition"] for row in report["conditions"]}
    for name in dict.fromkeys(arm["condition"] for arm in report["arms"]):
        if name not in stated:
            report["conditions"].append(_filled({"condition": name}, _CONDITION))
    for claim in report["claims"]:
        claim["literature"] = [_filled(row, _LITERATURE) for row in claim["literature"]]
    for row in report["noise"]:
        row["interval"], row["mean_interval"] = _interval(row["interval"]), _interval(row["mean_interval"])
    for row in report["conditions"]:
        row["references"] = _rows(row["references"], 2)
    for decision in report["decisions"]:
        for key in ("interval90", "interval95"):
            decision[key] = _interval(decision[key])
        decision["paired"] = [_filled(row, _PAIR) for row in decision["paired"]]
        decision["downgrades"] = [_filled(row, _DOWNGRADE) for row in decision["downgrades"]]
    for arm in report["arms"]:
        arm["label"] = arm["label"] or arm["arm"]
        arm["confounds"] = _filled(arm["confounds"], _CONFOUNDS)
        arm["tuning"] = [_filled(row, _TUNING) for row in arm["tuning"]]
        arm["members"] = [_filled(row, _MEMBER) for row in arm["members"]]
        for member in arm["members"]:
            member["curve"] = thin(_rows(member["curve"], 2))
            member["train_curve"] = thin(_rows(member["train_curve"], 3))
    return report


def canonical_json(report: Mapping[str, Any]) -> str:
    """The same bytes for the same data: keys sorted, strict JSON, a line break at the end."""
    return json.dumps(report, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def thin(curve: Sequence[Any], limit: int = POINTS) -> list[Any]:
    """At most `limit` points, evenly spread, with the first and the last."""
    if len(curve) <= limit:
        return list(curve)
    last = len(curve) - 1
    return [curve[round(i * last / (limit - 1))] for i in range(limit)]


def _interval(ends: Any) -> list[float] | None:
    """Both ends, or None when one is not known or not finite."""
    return ends if isinstance(ends, list) and len(ends) == 2 and None not in ends else None


def _rows(rows: Any, width: int) -> list[list[Any]]:
    """Rows that begin with a value, filled up to `width` with None."""
    return [[*row, *[None] * width][:width] for row in rows if row and row[0] is not None]


def _filled(row: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`row` over a copy of `defaults`; an explicit None counts as absent where a list or text is expected."""
    given = row if isinstance(row, Mapping) else {}
    filled = {key: _copy(default) for key, default in defaults.items()}
    for key, value in given.items():
        if value is not None or defaults.get(key) is None:
            filled[key] = value
    return filled


def _copy(default: Any) -> Any:
    return type(default)() if isinstance(default, list | dict) else default


def _clean(value: Any) -> Any:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return "".join(_printable(c) for c in value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_clean(str(key)): _clean(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_clean(item) for item in value]
    raise UserError(
        f"The report's data holds a {type(value).__name__} ({value!r:.60}); give it as a number, text or list."
    )


def _printable(character: str) -> str:
    """The character, or the replacement sign where XML or UTF-8 has no place for it."""
    code = ord(character)
    forbidden = (code < 32 and character not in "\n\t") or 0x7F <= code < 0xA0
    surrogate = 0xD800 <= code < 0xE000
    return "\ufffd" if forbidden or surrogate or code in (0xFFFE, 0xFFFF) else character
