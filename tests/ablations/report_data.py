"""Made-up report data of any size, with everything that can go wrong in it."""

from __future__ import annotations

import math
import random
from typing import Any

EVIL = "<script>alert(1)</script>"
INITIAL = 5.55
TOKENS = 500_000


def report_data(
    arms: int = 3,
    seeds: int = 8,
    points: int = 30,
    conditions: tuple[str, ...] = ("default",),
    evil: bool = False,
    random_seed: int = 0,
) -> dict[str, Any]:
    """A complete report: the first arm is the baseline; later arms are a little worse each.

    With at least three arms, one seed of the last arm diverged, one run of the second failed, and the last seed of
    the last arm is missing. `evil` puts markup into every free text.
    """
    dice = random.Random(random_seed)
    taint = EVIL if evil else ""
    names = ["pre", *(["post", "none", "sandwich", "branch", "pre_post", "rezero", "deepnorm", "dyt", "rms", "l2"])]
    names = [name + taint for name in (names * (1 + arms // len(names)))[:arms]]
    rows = [
        _arm(dice, name, index, condition, seeds, points, last=index == arms - 1 and arms > 2, taint=taint)
        for condition in conditions
        for index, name in enumerate(names)
    ]
    decisions = [
        _decision(rows, names[0], name, condition, index, taint)
        for index, name in enumerate(names[1:], 1)
        for condition in conditions
    ]
    claims = [_claim(name, index, decisions, taint) for index, name in enumerate(names[1:], 1)]
    states = [m["state"] for row in rows for m in row["members"]] + [t["state"] for row in rows for t in row["tuning"]]
    return {
        "name": "prenorm" + taint,
        "question": "Does it matter whether layer norm stands before the sublayer, after the addition, or nowhere?"
        + taint,
        "profile": "demo",
        "scale": "0.1M parameters, 0.5M tokens a run, stdlib",
        "verdicts": True,
        "conditions": [
            {
                "condition": condition, "note": "", "scale": "0.5M tokens", "metric": "loss", "better": "lower",
                "unit": "nats per token", "references": [["unigram entropy", 3.12], ["bigram entropy", 2.31]],
            }
            for condition in conditions
        ],
        "matched": ["tokens", "depth"],
        "headline": "Layer norm after the addition costs 0.03 nats per token at this scale; without any norm, one run "
        "in eight diverged." + taint,
        "progress": {
            "planned": len(states),
            **{state: states.count(state) for state in ("done", "diverged", "failed", "missing")},
            "tampered": [],
        },
        "claims": claims,
        "decisions": decisions,
        "arms": rows,
        "noise": [
            {
                "condition": condition, "unit": "nats per token", "sigma": 0.012, "interval": [0.008, 0.024],
                "n": seeds, "note": "init-salted twin" + taint,
            }
            for condition in conditions
        ],
        "measured": ["prefix_loss"],
        "checks": [
            {"claim": "layernorm_statistics" + taint, "name": "mean 0, variance 1", "passed": True,
             "sabotage_caught": True, "detail": "largest deviation 3e-7" + taint},
            {"claim": "layernorm_batch_independent", "name": "batch of 1 = batch of 64", "passed": False,
             "sabotage_caught": None, "detail": "differs by 2e-3 at position 5"},
        ],
        "provenance": {
            "command": "python -m ablations run prenorm --profile=demo" + taint,
            "git": "4d4885e (dirty)",
            "python": "3.11.7",
            "packages": {"jax": "0.10.2", "flax": "0.12.8", "optax": "0.2.8"},
            "device": "cpu x 2",
            "fingerprint": "e37b8d9e062b",
            "data": "stdlib",
            "member_seconds": 1234.5,
        },
    }  # fmt: skip


def _curve(dice: random.Random, final: float, points: int) -> list[list[float]]:
    wobble = dice.gauss(0, 0.02)
    rows = []
    for i in range(points):
        share = i / max(points - 1, 1)
        loss = final + wobble + (INITIAL - final) * math.exp(-6.5 * share**0.6) + dice.gauss(0, 0.004) * share
        rows.append([round(TOKENS * share), loss if i else INITIAL])
    return rows


def _member(
    dice: random.Random, seed: int, final: float, points: int, rate: float, state: str = "done", twin: bool = False,
    taint: str = "",
) -> dict[str, Any]:  # fmt: skip
    curve = _curve(dice, final, points) if state != "missing" else []
    train = [[x, y + dice.gauss(0, 0.03), math.exp(dice.gauss(-0.5, 0.15)) + 3 * math.exp(-x / 3e4)] for x, y in curve]
    if state == "diverged":
        half = max(len(curve) // 2, 1)
        curve = [*curve[:half], [curve[half - 1][0] + 5000, 48.0], [curve[half - 1][0] + 10_000, None]]
        train = [*train[:half], [train[half - 1][0] + 5000, 48.0, 4e7], [train[half - 1][0] + 10_000, None, None]]
    if state == "failed":
        curve, train = curve[: len(curve) // 3], train[: len(train) // 3]
    metrics = {"loss": curve[-1][1], "prefix_loss": curve[-1][1] + 0.3} if state == "done" else {}
    return {
        "seed": seed, "twin": twin, "learning_rate": rate, "state": state,
        "error": f"XlaRuntimeError: out of memory {taint}" if state == "failed" else "",
        "diverged_at": 240 if state == "diverged" else None, "metrics": metrics, "initial": INITIAL,
        "seconds": 31.5 + dice.random() if state == "done" else None,
        "tokens_per_second": 16_000 + 500 * dice.random() if state == "done" else None,
        "curve": curve, "train_curve": train,
    }  # fmt: skip


def _arm(
    dice: random.Random, name: str, index: int, condition: str, seeds: int, points: int, last: bool, taint: str
) -> dict[str, Any]:
    baseline, final, best = index == 0, 2.02 + 0.03 * index, 1e-3 if index % 2 == 0 else 3e-3
    members = []
    for seed in range(seeds):
        state = "done"
        if last and seed == min(3, seeds - 1):
            state = "diverged"
        elif last and seed == seeds - 1:
            state = "missing"
        elif index == 1 and seed == seeds - 2:
            state = "failed"
        members.append(_member(dice, seed, final, points, best, state, taint=taint))
    if baseline:
        members += [_member(dice, seed, final, points, best, twin=True) for seed in range(seeds)]
    tuning = []
    for rate in (3e-4, 1e-3, 3e-3, 1e-2):
        for seed in (1000, 1001):
            value = final + 0.15 * math.log10(rate / best) ** 2 + abs(dice.gauss(0, 0.015))
            lost = last and rate == 1e-2
            tuning.append({
                "learning_rate": rate, "seed": seed, "value": None if lost else value,
                "state": "diverged" if lost else "done", "initial": INITIAL,
            })  # fmt: skip
    return {
        "arm": name, "condition": condition, "label": name, "note": f"{name} placement{taint}", "baseline": baseline,
        "overrides": {} if baseline else {"model.norm.placement": name},
        "parameters": 101_376 - 512 * index, "components": {"ffn": 65_536, "attention": 32_768},
        "flops_per_token": 214_000.0 - 900 * index, "tokens": TOKENS, "learning_rate": best, "edge": index == 1,
        "tuning": tuning, "members": members,
        "confounds": {
            "config": [] if baseline else [["model.norm.placement", "pre", name], ["x", "ln", taint or None]],
            "parameters_only_base": [] if baseline else [f"blocks/{i}/norm/scale [64]" for i in range(4)],
            "parameters_only_arm": [], "shape_changed": [], "decay_changed": [],
            "init_changed": ["final_norm/scale"] if index == 1 else [],
        },
    }  # fmt: skip


VERDICTS = ("supported", "inconclusive", "refuted", "mixed")


def _decision(
    rows: list[dict[str, Any]], base: str, test: str, condition: str, index: int, taint: str
) -> dict[str, Any]:
    ends = [
        {m["seed"]: m["metrics"].get("loss") for m in row["members"] if not m["twin"]}
        for name in (base, test)
        for row in rows
        if row["arm"] == name and row["condition"] == condition
    ]
    paired = [{"seed": s, "base": ends[0][s], "test": ends[1][s]} for s in ends[0]]
    differences = [p["test"] - p["base"] for p in paired if p["test"] is not None and p["base"] is not None]
    middle = sum(differences) / len(differences) if differences else None
    verdict = VERDICTS[(index - 1) % 4]
    undecided = verdict == "inconclusive"
    return {
        "claim": f"claim_{index}", "condition": condition, "type": "superiority", "test": test, "base": base,
        "arms": [], "metric": "loss", "unit": "nats per token", "margin": 0.01, "better": "lower", "verdict": verdict,
        "label": "refuted, no practical difference" if verdict == "refuted" else verdict,
        "reason": ("no difference shown, and none ruled out" if undecided else "the difference is as claimed") + taint,
        "remedy": ("run about 24 paired seeds" + taint) if undecided else "",
        "sentence": f"At demo scale, {test} against {base} on loss: {verdict}.", "estimate": middle,
        "estimate_name": "difference",
        "interval90": None if middle is None else [middle - 0.011, middle + 0.011],
        "interval95": None if middle is None else [middle - 0.014, middle + 0.014],
        "n": len(differences), "p": 0.004 * index, "p_adjusted": min(1.0, 0.02 * index), "q": 0.01 * index,
        "method": "paired t test", "sd": 0.017, "rho": 0.41, "detectable": 0.019,
        "downgrades": [{"reason": "6 of 8 declared seeds", "remedy": "run the rest"}] if undecided else [],
        "prior": "supported", "contrast_hash": "0123456789ab",
        "registered": "after its data" if index == 2 else "before its data", "check": "", "paired": paired,
    }  # fmt: skip


def _claim(name: str, index: int, decisions: list[dict[str, Any]], taint: str) -> dict[str, Any]:
    claim = f"claim_{index}"
    own = [i for i, decision in enumerate(decisions) if decision["claim"] == claim]
    return {
        "claim": claim,
        "statement": f"Placing the norm as in {name} makes training worse than the pre-norm arrangement.{taint}",
        "kind": "training", "prior": "supported" if index != 2 else "mixed", "surprise": index == 2,
        "literature": [
            {"source": "Xiong et al. 2020" + taint, "status": "read",
             "finding": "Gradients near the output are large for post-norm at initialisation; see https://arxiv.org/abs/2002.04745."},
            {"source": "Nobody 2021", "status": "unverified", "finding": "Says the opposite."},
        ],
        "verdict": decisions[own[0]]["verdict"] if own else "inconclusive",
        "sentence": decisions[own[0]]["sentence"] if own else "", "decisions": own,
    }  # fmt: skip
