"""The claims: what people say about transformers, one row each, written down before anything was measured.

The rows live in the TOML files of this folder, one file per section, in the order the report shows them.
An ablation attaches its contrasts to a row by `id`; a row may have many, and they decide its verdict.

    from ablations import claims
    claims.get("rope_extrapolates_well").statement
"""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

from transformer.errors import UserError, did_you_mean

FOLDER = Path(__file__).parent

Kind = Literal["exact", "training", "inference", "accounting", "performance"]
Verdict = Literal["supported", "refuted", "mixed", "inconclusive"]
Status = Literal["read", "memory", "unverified"]


class ClaimError(UserError):
    """A file of claims is malformed: a key is missing, a value is not allowed, an id occurs twice."""


class UnknownClaimError(ClaimError, KeyError):
    """No claim has this id."""

    def __str__(self) -> str:  # a bare KeyError would show the sentence in quotes
        return str(self.args[0])


@dataclasses.dataclass(frozen=True)
class Literature:
    """What one source says about a claim.

    Attributes:
      source: author, year and place in the paper; `own pilot` is our own arithmetic, or a small numpy run
        made before the lab existed.
      finding: what it reports, in our words.
      status: `read` was seen in the source, `memory` is believed right but was not looked up,
        and `unverified` is uncertain: never print it without saying so.
    """

    source: str
    finding: str
    status: Status


@dataclasses.dataclass(frozen=True)
class Claim:
    """One claim, with what was known and expected before any run.

    Attributes:
      id: the name contrasts and `explain` use.
      section: heading of the file it stands in.
      kind: `exact` and `accounting` need no training, `inference` and `performance` are measured on models or
        kernels that exist, `training` compares arms that are trained.
      statement: the claim the way people make it, right or wrong.
      measure: arms, metric, and what would support or refute it.
      departure: how what was asked in the end differs from that, and what the difference does; empty where it does not.
      literature: what is published; may be empty.
      confounds: what else could produce the effect.
      prior: the verdict expected beforehand; `prior_note` says why or where.
      surprise: whether the evidence contradicts or qualifies the common view in a way worth showing first.
      ablation: name of the ablation that decides it.
      seeds: the interview questions it was taken from (document and question number).
    """

    id: str
    section: str
    kind: Kind
    statement: str
    measure: str
    literature: tuple[Literature, ...]
    confounds: str
    prior: Verdict
    prior_note: str
    surprise: bool
    ablation: str
    seeds: tuple[str, ...]
    departure: str = ""


def get(claim_id: str) -> Claim:
    """Returns one claim.

    Raises:
      UnknownClaimError: no such id; names the closest one.
    """
    claims = _load(FOLDER)
    if claim_id not in claims:
        raise UnknownClaimError(f'Unknown claim "{claim_id}".{did_you_mean(claim_id, claims)}')
    return claims[claim_id]


def load(folder: Path = FOLDER) -> dict[str, Claim]:
    """Returns every claim by id, in the order of the files; parsed once per folder.

    Raises:
      ClaimError: a file is malformed; the sentence names the file and the claim.
    """
    return dict(_load(folder))


@functools.cache
def _load(folder: Path) -> dict[str, Claim]:
    claims: dict[str, Claim] = {}
    home: dict[str, str] = {}
    for path in sorted(folder.glob("*.toml")):
        for claim in _read(path):
            if claim.id in claims:
                raise ClaimError(
                    f'{path.name}: the claim "{claim.id}" already stands in {home[claim.id]}; rename or remove one.'
                )
            claims[claim.id] = claim
            home[claim.id] = path.name
    if not claims:
        raise ClaimError(f"No claims (*.toml) in {folder}.")
    return claims


def _read(path: Path) -> list[Claim]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ClaimError(f"{path.name} is not valid TOML: {error}.") from error
    _check_keys(table, ("title", "claim"), path.name)
    _check(table["title"], "title", "a line of text", path.name)
    _check(table["claim"], "claim", "a list of tables", path.name)
    return [_claim(row, table["title"], path.name) for row in table["claim"]]


def _claim(row: dict[str, Any], section: str, file: str) -> Claim:
    where = f'{file}: the claim "{row.get("id", "(without id)")}"'
    row = {"departure": "", **row}
    _check_keys(row, [f.name for f in dataclasses.fields(Claim) if f.name != "section"], where)
    for key in ("id", "statement", "measure", "ablation"):
        _check(row[key], key, "a line of text", where)
    for key in ("confounds", "prior_note", "departure"):
        _check(row[key], key, "text, possibly empty", where)
    _check(row["surprise"], "surprise", "true or false", where)
    _check(row["seeds"], "seeds", "a list of text", where)
    _check(row["literature"], "literature", "a list of tables", where)
    _check_choice(row["kind"], "kind", get_args(Kind), where)
    _check_choice(row["prior"], "prior", get_args(Verdict), where)
    literature = tuple(_literature(entry, where) for entry in row["literature"])
    texts = {key: _one_line(value) for key, value in row.items() if isinstance(value, str)}
    return Claim(**{**row, **texts, "section": section, "literature": literature, "seeds": tuple(row["seeds"])})


def _literature(entry: dict[str, Any], where: str) -> Literature:
    where = f"{where}, under literature,"
    _check_keys(entry, [f.name for f in dataclasses.fields(Literature)], where)
    _check(entry["source"], "source", "a line of text", where)
    _check(entry["finding"], "finding", "a line of text", where)
    _check_choice(entry["status"], "status", get_args(Status), where)
    return Literature(_one_line(entry["source"]), _one_line(entry["finding"]), entry["status"])


_SHAPES = {
    "a line of text": lambda value: isinstance(value, str) and bool(value.strip()),
    "text, possibly empty": lambda value: isinstance(value, str),
    "true or false": lambda value: isinstance(value, bool),
    "a list of text": lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
    "a list of tables": lambda value: isinstance(value, list) and all(isinstance(item, dict) for item in value),
}


def _check(value: Any, key: str, shape: str, where: str) -> None:
    if not _SHAPES[shape](value):
        raise ClaimError(f"{where} has {key} = {value!r}; it must be {shape}.")


def _check_choice(value: Any, key: str, allowed: Iterable[str], where: str) -> None:
    if value not in allowed:
        raise ClaimError(
            f"{where} has {key} = {value!r}; it is one of: {', '.join(allowed)}.{did_you_mean(str(value), allowed)}"
        )


def _check_keys(table: dict[str, Any], expected: Iterable[str], where: str) -> None:
    expected = list(expected)
    missing = [key for key in expected if key not in table]
    if missing:
        raise ClaimError(f"{where} lacks {', '.join(missing)}; every key must be given, if only as empty.")
    unknown = [key for key in table if key not in expected]
    if unknown:
        raise ClaimError(f'{where} has an unknown key "{unknown[0]}".{did_you_mean(unknown[0], expected)}')


def _one_line(text: str) -> str:
    """Undoes the line breaks that keep the files readable."""
    return " ".join(text.split())
