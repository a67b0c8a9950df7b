"""The parts of a report: frames, labels, colours, numbers, the small forest pictures and the sentences."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path

import numpy as np
import pytest

from ablations import claims, explain
from ablations.report import figures, forest, members, numbers, page, words
from ablations.report.contract import complete, thin
from ablations.report.curves import enter, frame, mean_curve, spread
from ablations.report.overview import overview
from ablations.report.palette import ARMS, BASE_DASH, CHROME, PAGE, ROLES, arm_styles
from ablations.schema import ABOUT
from ablations.statistics import divergence_rates
from tests.ablations.report_data import report_data


def test_a_frame_holds_every_finished_value_and_puts_the_rest_at_its_edge():
    within = frame([2.0, 2.2], beyond=True, cap=5.5)
    assert within.low < 2.0 and 2.2 < within.edge < within.high < 2.3
    assert within.place(2.1) == 2.1
    assert within.place(1e6) == within.place(None) == within.edge
    assert frame([2.0, 2.2], beyond=False).edge == 2.2


def test_what_is_worse_than_before_training_does_not_stretch_the_frame():
    assert frame([2.0, 2.2, 1e6], beyond=True, cap=5.5) == frame([2.0, 2.2], beyond=True, cap=5.5)
    higher = frame([0.7, 0.9, 0.01], beyond=True, cap=0.1, worse=-1)
    assert higher.edge < 0.7 < 0.9 < higher.high and higher.place(0.0) == higher.edge


def test_a_logarithmic_frame_stays_positive():
    within = frame([0.1, 10.0], beyond=True, log=True)
    assert 0 < within.low < 0.1 and within.holds(10.0) and not within.holds(1e7)


@pytest.mark.parametrize("values", [[], [2.0], [0.0, 0.0]])
def test_a_frame_is_never_empty(values):
    within = frame(values, beyond=False)
    assert within.low < within.high


def test_a_curve_enters_its_frame_and_runs_along_the_edge_where_it_leaves():
    within = frame([2.0, 3.0], beyond=False)
    points = [(0, 5.0), (10, 3.5), (20, 2.5), (30, 2.0), (40, 9.0), (50, None)]
    assert enter(points, within) == [(15.0, 3.0), (20, 2.5), (30, 2.0), (40, 3.0), (50, 3.0)]
    assert enter([(0, 9.0), (10, None)], within) == [(0, 3.0), (10, 3.0)]


def test_a_mean_needs_every_curve():
    curves = [[(0, 5.0), (10, 3.0), (20, 2.0)], [(0, 5.0), (10, None), (20, 4.0), (30, 1.0)]]
    assert mean_curve(curves) == [(0, 5.0), (20, 3.0)]
    assert mean_curve([]) == []


def test_labels_are_moved_apart_as_little_as_needed():
    dice = random.Random(1)
    for count in range(1, 12):
        values = [dice.uniform(0, 150) for _ in range(count)]
        moved = spread(values, 12, 150)
        ordered = sorted(moved)
        assert all(b - a >= 12 - 1e-9 for a, b in itertools.pairwise(ordered))
        assert ordered[0] >= 0 and ordered[-1] <= 150 + 1e-9
        assert sorted(range(count), key=values.__getitem__) == sorted(range(count), key=moved.__getitem__)
    assert spread([10, 100], 12, 150) == [10, 100]
    assert spread([50, 50], 12, 150) == [44, 56]


def test_thinning_keeps_short_curves_whole():
    assert thin(list(range(100))) == list(range(100))
    assert thin(list(range(101)))[:2] == [0, 1] and thin(list(range(101)))[-1] == 100


def _linear(color: str) -> np.ndarray:
    channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def _contrast(a: str, b: str) -> float:
    """WCAG 2 contrast ratio."""
    light, dark = sorted((float(_linear(color) @ [0.2126, 0.7152, 0.0722]) for color in (a, b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


# Machado, Oliveira and Fernandes 2009, severity 1, in linear RGB; and Oklab (Ottosson 2020) for the distance.
VISION = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
TO_CONES = [[0.41222, 0.53633, 0.05145], [0.2119, 0.6807, 0.1074], [0.0883, 0.28172, 0.62998]]
TO_OKLAB = [[0.21045, 0.79362, -0.00407], [1.978, -2.42859, 0.45059], [0.0259, 0.78277, -0.80868]]


def _seen(color: str, vision: str) -> np.ndarray:
    return np.array(TO_OKLAB) @ np.cbrt(np.array(TO_CONES) @ np.clip(np.array(VISION[vision]) @ _linear(color), 0, 1))


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_stand_out_from_the_page_and_from_each_other(scheme):
    colors = [pair[scheme] for pair in ARMS] + [CHROME["base"][scheme]]
    assert all(_contrast(color, PAGE[scheme]) >= 3 for color in colors)
    assert all(_contrast(CHROME[role][scheme], PAGE[scheme]) >= 4.5 for role in ("ink", "muted", "reference"))
    arms = colors[:-1]
    for vision in VISION:
        closest = min(
            float(np.linalg.norm(_seen(a, vision) - _seen(b, vision))) for a, b in itertools.combinations(arms, 2)
        )
        assert closest > 0.075, vision  # 0.02 is just noticeable side by side


def test_a_role_is_known_by_its_light_colour_alone():
    assert len({light for light, _ in ROLES.values()}) == len(ROLES)


def test_more_arms_than_hues_differ_in_dash_and_only_the_baseline_is_grey():
    styles = arm_styles([("base", True), *((f"arm{i}", False) for i in range(15)), ("arm3", False)])
    assert styles["base"].role == "base" and list(styles["base"].dash) == BASE_DASH
    looks = [(style.role, tuple(style.dash)) for style in styles.values()]
    assert len(set(looks)) == len(looks) == 16


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (numbers.estimate(0.03141, (0.0123, 0.0505), True), ("+0.031", "+0.012 to +0.051")),
        (numbers.estimate(-1.234, (-2.5, 0.1), True), ("−1.2", "−2.5 to +0.1")),
        (numbers.estimate(0.5, None, False), ("0.500", "")),
        (numbers.estimate(None, None, True), ("–", "")),
        (numbers.estimate(1.0, (1.0, 1.0), True), ("+1.0000", "+1.0000 to +1.0000")),
        (numbers.fixed(-0.0001, 2, True), "0.00"),
        (numbers.significant(1234.5), "1234"),
        (numbers.significant(-4.2e-7), "−4.20e−7"),
        (numbers.rate(0.0015), "1.5e−3"),
        (numbers.p_value(0.0004), "< 0.001"),
        (numbers.p_value(0.0123), "0.012"),
        (numbers.p_value(1.0), "1"),
        (numbers.count(999_950), "1M"),
        (numbers.count(812), "812"),
        (numbers.exact(812_345), "812,345"),
        (numbers.ratio(104, 100), "1.04×"),
        (numbers.ratio(104, 0), ""),
        (numbers.duration(3.21), "3.2 s"),
        (numbers.duration(4000), "1 h 7 min"),
        (numbers.listed(["a", "b", "c"]), "a, b and c"),
        (numbers.plural(1, "run"), "1 run"),
    ],
)
def test_numbers_read_well(text, expected):
    assert text == expected


def _row(estimate, low, high, name="difference", margin=0.01):
    return {
        "estimate": estimate, "interval95": [low, high], "interval90": [low, high], "estimate_name": name,
        "estimate_title": name, "median": False, "metric": "loss", "margin": margin,
    }  # fmt: skip


def test_rows_of_one_kind_share_a_scale_and_one_giant_does_not_flatten_the_rest():
    rows = [_row(0.02, 0.01, 0.03), _row(-0.01, -0.03, 0.01), _row(3.0, 2.5, 3.5)]
    scale = forest.scales(rows)["difference", "loss"]
    assert scale.low == -scale.high and 0.03 < scale.high <= 0.1
    assert 'data-mark="beyond"' in forest.cell(rows[2], scale, "arm0")
    assert 'data-mark="beyond"' not in forest.cell(rows[0], scale, "arm0")
    assert 'data-mark="margin"' in forest.cell(rows[0], scale, "arm0")


def test_a_level_is_drawn_against_the_value_it_has_to_reach():
    row = _row(0.88, 0.86, 0.90, "mean", margin=0.1)
    scale = forest.scales([row])["mean", "loss"]
    assert scale.low < 0.1 < 0.86 < scale.high
    assert f'x1="{scale.x(0.1):.1f}"' in forest.cell(row, scale, "arm0")


def test_one_picture_of_all_answers_has_a_row_for_each_comparison():
    data = complete(report_data(arms=5, seeds=4, points=3))
    fraction = dict(data["decisions"][0], estimate_name="recovered fraction", estimate=0.6, interval95=[0.5, 0.7])
    same, other = dict(data["decisions"][0]), {**data["decisions"][0], "estimate": 0.5}
    data["decisions"] += [same, other, fraction, {**fraction, "estimate": None}]
    figure = overview([data])
    assert figure is not None
    differences, fractions = figure.panels
    assert "prenorm: post − pre 0." in differences.description and "prenorm: post − pre (2)" in differences.description
    assert "prenorm: post − pre (3)" not in differences.description  # two claims rest on the same comparison
    assert all(verdict in differences.body for verdict in ("supported", "refuted", "mixed", "inconclusive"))
    assert differences.body.count("nats") == 0 and "supported" in differences.description
    assert fractions.description.count("prenorm: post 0.60") == 1
    judged = next(row for row in data["conditions"] if row["condition"] == fraction["condition"])
    judged["references"] = [["unigram entropy", 3.0], ["bigram entropy", 2.4]]
    pairs = [{**pair, "base": 2.0} for pair in fraction["paired"]]
    of_text = {**fraction, "type": "catastrophe", "paired": pairs}
    assert members.of_a_table(data, of_text) == pytest.approx(0.6) and members.of_a_table(data, fraction) is None
    with_tick = overview([{**data, "decisions": [of_text]}])
    without = overview([{**data, "decisions": [fraction]}])
    assert with_tick.panels[0].body.count("<path") == without.panels[0].body.count("<path") + 1
    assert overview([{**data, "decisions": []}]) is None
    median = overview([{**data, "decisions": [{**fraction, "median": True, "interval95": None}]}])
    filled, hollow = (figure.panels[0].body.count('<path class="s-') for figure in (without, median))
    assert hollow == filled + 1


def test_ratios_are_drawn_on_a_logarithmic_scale():
    row = _row(2.0, 0.5, 8.0, "sensitivity ratio")
    scale = forest.scales([row])["sensitivity ratio", "loss"]
    assert math.isclose(scale.x(2.0) - scale.x(1.0), scale.x(1.0) - scale.x(0.5))
    assert scale.x(8.0) < forest.RIGHT


def test_a_picture_says_in_words_what_it_shows():
    text = forest.describe(_row(0.02, 0.01, 0.03))
    assert text == (
        "difference 0.0200, 95% interval 0.0100 to 0.0300, 90% interval 0.0100 to 0.0300; shaded from −0.0100 to 0.0100"
    )


def test_a_median_without_an_interval_is_a_hollow_dot():
    row = _row(0.02, 0.01, 0.03)
    scale = forest.scales([row])["difference", "loss"]
    assert 'fill="none"' not in forest.cell(row, scale, "ink")
    assert 'class="s-ink" fill="none"' in forest.cell({**row, "median": True}, scale, "ink")
    assert 'fill="none"' not in forest.cell({**row, "interval95": None, "interval90": None}, scale, "ink")


def test_sentences_follow_the_data():
    data = complete(report_data(arms=2, seeds=4, points=3))
    assert "2 arms were run" in words.asked(data)
    assert words.asked(data).count(f"prefix_loss is {ABOUT['prefix_loss']}.") == 1
    assert "rise_2x" not in words.asked(data)
    assert "The comparison rests on 3 pairs of runs." in words.certainty(data)
    assert "Holm" not in words.certainty(data)
    assert "What would count as an answer was written down before the data it is judged by existed." in words.certainty(
        data
    )
    data["verdicts"] = False
    assert words.certainty(data).startswith("Not at all: the demo profile")


def test_checks_are_not_sold_as_statistics():
    data = complete({"decisions": [{"type": "exact", "check": "x", "verdict": "supported"}]})
    assert words.certainty(data).startswith("1 comparison is settled by a test or a formula, not by statistics")


def test_larger_arms_are_named_as_such():
    data = complete(report_data(arms=2, seeds=2, points=3))
    data["arms"][1]["parameters"] = round(data["arms"][0]["parameters"] * 1.25)
    assert "Not the same: parameters (post 25% more)." in words.held_fixed(data)
    data["arms"][1]["parameters"] = data["arms"][0]["parameters"]
    assert "Not the same" not in words.held_fixed(data)


def test_runs_that_diverged_are_counted_beside_the_verdict():
    data = complete(report_data(arms=2, seeds=2, points=3))
    data["decisions"][0]["diverged"] = divergence_rates(3, 8, 0, 8).counts
    rows = [row for claim in page.context(data, [])["claims"] for row in claim["rows"]]
    assert ["runs that diverged: 3 of 8 against 0 of 8" in row["notes"] for row in rows].count(True) == 1
    assert divergence_rates(0, 8, 0, 8).counts == ""


def test_a_tuning_run_that_ended_broken_says_so_where_the_pointer_rests():
    data = complete(report_data(arms=2, seeds=2, points=3))
    said = "which counts as diverged"
    assert said not in figures.learning_rate_curves(data).panels[-1].body
    broken = next(row for row in data["arms"][1]["tuning"] if row["state"] == "done")
    broken["broken"] = True
    drawn = figures.learning_rate_curves(data).panels[-1].body
    assert f"{numbers.significant(broken['value'], 4)}, {said}" in drawn


def test_what_is_almost_the_same_is_said_to_be_almost_the_same():
    data = complete(report_data(arms=2, seeds=2, points=3))
    data["matched"] = ["tokens", "parameters"]
    data["arms"][0]["parameters"] = data["arms"][1]["parameters"] = 10_000
    assert "the same tokens and parameters." in words.held_fixed(data)
    data["arms"][1]["parameters"] = 9_960
    assert "the same tokens and parameters (within 0.4%)." in words.held_fixed(data)


def test_a_claim_that_was_asked_otherwise_says_so_wherever_it_is_answered():
    claim = claims.get("exposure_bias_gap")
    data = complete({"claims": [{"claim": claim.id, "statement": claim.statement, "departure": claim.departure}]})
    told = page.context(data, [])["claims"][0]["departure"]
    assert told == claim.departure and told.startswith("Asked is whether")
    for name in ("report.html.j2", "report.md.j2"):
        text = page.environment(markdown=name.startswith("report.md")).get_template(name)
        shown = text.render(page.context(data, []), style="", code=page.markdown_code)
        assert told.partition(":")[0] in shown and "otherwise than planned" in shown
    assert any(claim.departure in line for line, _ in explain.lines(claim.id, Path("nowhere")))


def test_without_a_tuned_rate_the_report_says_so():
    data = complete(report_data(arms=2, seeds=2, points=3))
    for arm in data["arms"]:
        arm.update(tuning=[], learning_rate=1e-3, edge=False)
    assert "No learning rate was tuned: the arms ran at 1e−3." in words.held_fixed(data)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("superiority", "0.01 matters"),
        ("level", "0.01 is stated"),
        ("catastrophe", "0.25 is lost, 0.75 kept"),
        ("stability", "beyond 1.5 is less stable, within 0.8 to 1.25 alike"),
        ("exact", ""),
    ],
)
def test_a_table_says_what_an_estimate_is_held_against(kind, said):
    assert page._margin({"type": kind, "margin": 0.01}) == said
