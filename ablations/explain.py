"""One claim from beginning to end: what is said, planned and registered, the numbers, the verdict, the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ablations import catalog, checks, claims, committed, summary
from ablations.profiles import DEFAULT_PROFILE
from ablations.schema import UNITS, Ablation, Contrast


def lines(claim: str, runs: Path) -> Iterator[tuple[str, bool]]:
    """(a line, whether it is a heading).

    Raises:
      UnknownClaimError: neither the claims nor any config know it.
    """
    asking = {name: found for name in catalog.names() if (found := _contrasts(name, claim))}
    yield from _said(claim, asking)
    answered = False
    for name in asking:
        for data in _judged(name, catalog.load(name), runs):
            told = list(_verdict(data, claim))
            answered = answered or bool(told)
            yield from told
            if told and all(contrast.check for contrast in asking[name]):
                break  # a check knows no profile
    if answered:
        return
    trained = [name for name in asking if any(p.verdicts for p in catalog.load(name).profiles.values())]
    if trained:
        yield f"not measured yet: python -m ablations run {trained[0]}{_profile_flag(catalog.load(trained[0]))}", False
    else:
        yield from _checked(claims.get(claim), runs)


def _contrasts(name: str, claim: str) -> list[Contrast]:
    return [contrast for contrast in catalog.load(name).contrasts if contrast.claim == claim]


def _said(claim: str, asking: dict[str, list[Contrast]]) -> Iterator[tuple[str, bool]]:
    """What is said of it, and what would count as an answer."""
    if claim in claims.load() or not asking:
        known = claims.get(claim)
        yield f"{known.id} ({known.kind}, {known.section})", True
        yield f"said:      {known.statement}", False
        yield f"planned as: {known.measure}", False
        if known.departure:
            yield f"asked otherwise: {known.departure}", False
        for entry in known.literature:
            yield f"literature: {entry.source}: {entry.finding} [{entry.status}]", False
        note = f"; {known.prior_note}" if known.prior_note else ""
        yield f"expected before any run: {known.prior}{note}", False
    else:  # a control, which is a statement of its config
        yield claim, True
        yield f"said:      {next(iter(asking.values()))[0].note}", False
    for name, contrasts in asking.items():
        for contrast in contrasts:
            yield f"registered in {name}: {registered(contrast)}", False


def registered(contrast: Contrast) -> str:
    """A comparison as its config states it, which is what decides."""
    if contrast.check:
        return f"{contrast.type}, by {contrast.check}"
    named = ", ".join(contrast.arms) or " against ".join(filter(None, (contrast.test, contrast.base)))
    said = f"{contrast.type} of {named} in {contrast.metric.replace('_', ' ')}"
    if contrast.expect:
        said += f", {contrast.test} expected {contrast.expect}"
    if contrast.type in ("superiority", "equivalence", "level", "ordering"):
        amount = f"{contrast.margin:g} {UNITS.get(contrast.metric, '')}".rstrip()
        said += f", {'value' if contrast.type == 'level' else 'margin'} {amount}"
    return said + (f" (under {', '.join(contrast.conditions)})" if contrast.conditions else "")


def _verdict(data: dict[str, Any], claim: str) -> Iterator[tuple[str, bool]]:
    """What one budget found; nothing where it does not ask, or has nothing to show yet."""
    row = next((row for row in data["claims"] if row["claim"] == claim), None)
    if row is None:  # the budget leaves out the conditions it is asked under
        return
    decisions, checked = [data["decisions"][i] for i in row["decisions"]], {c["name"] for c in data["checks"]}
    trained = data["progress"]["done"] + data["progress"]["diverged"]
    if not any(d["check"] in checked if d["check"] else trained for d in decisions):
        return
    yield f"\n{data['profile']}: {summary.worded(row)}", True
    for decision in decisions:
        yield f"  {decision['sentence']}", False
    yield f"  page: {data['page']}", False


def _checked(claim: claims.Claim, runs: Path) -> Iterator[tuple[str, bool]]:
    """What decides a claim that nothing is trained for."""
    for check in (deciding := checks.discover().get(claim.id, [])):
        decision = checks.decide(claim.id, check, checks.results(runs).get(check))
        yield f"\n{decision.verdict}: {check}", True
        yield f"  {decision.reason}", False
    if deciding:
        yield f"  run again: python -m ablations list --kind={claim.kind} --run", False
    else:
        yield f"no config asks this yet; it belongs to the ablation {claim.ablation}", False


def _profile_flag(ablation: Ablation) -> str:
    """What a command needs to name a budget that gives verdicts; nothing for the default one."""
    able = [name for name, profile in ablation.profiles.items() if profile.verdicts]
    return "" if DEFAULT_PROFILE in able else f" --profile={able[0]}"


def _judged(name: str, ablation: Ablation, runs: Path) -> Iterator[dict[str, Any]]:
    """What was run here at each profile, then what is committed; `page` says how to see it."""
    for profile, settings in ablation.profiles.items():
        if settings.verdicts:
            found = summary.summarize(summary.collect(name, profile, runs))
            yield {**found, "page": f"python -m ablations report {name} --profile={profile} --runs={runs}"}
    for kept, profile in committed.kept():
        if kept == name:
            page = committed.RESULTS / name / profile / "report.md"
            yield {**committed.data(name, profile), "page": page.relative_to(committed.ROOT)}
