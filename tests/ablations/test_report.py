"""The report draws every run, escapes every text, loads nothing, fits in 2 MB and is the same bytes every time."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("altair", reason="reports need the extra [report]")
pytest.importorskip("jinja2", reason="reports need the extra [report]")
pytest.importorskip("vl_convert", reason="reports need the extra [report]")

from altair.utils.schemapi import SchemaValidationError

from ablations import claims
from ablations.report import report_folder, write, write_index, write_report
from ablations.report.contract import complete
from ablations.report.drawing import Sheet
from ablations.report.index import suite
from ablations.report.page import markdown_text
from ablations.verdict import Overall
from tests.ablations.report_data import EVIL, report_data
from transformer.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ["also_measured", "gradient_norms", "learning_curves", "learning_rate_curves", "noise_floor", "paired_slopes"]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    write_report(report_data(), folder)
    return folder


@pytest.fixture(scope="module")
def evil(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evil")
    write_report(report_data(seeds=4, points=8, conditions=("shallow", "deep"), evil=True), folder)
    return folder


@pytest.fixture(scope="module")
def big(tmp_path_factory) -> tuple[Path, float]:
    folder = tmp_path_factory.mktemp("big")
    start = time.process_time()
    write_report(report_data(arms=10, seeds=8, points=100), folder)
    return folder, time.process_time() - start


SETTLED = {"alibi_formula": "supported", "rank_collapse": "supported"}


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Path:
    quick = _judging(("rank_collapse", "refuted"), profile="quick")
    demo = _judging(("rank_collapse", "supported"), ("layernorm_statistics", "inconclusive"), profile="demo")
    demo["claims"].append({"claim": "alibi_formula", "verdict": "inconclusive", "decisions": [1]})  # has not run
    smoke = {**_judging(("rope_relative_only", "supported"), profile="smoke"), "verdicts": False}
    return write_index([demo, smoke, quick], claims.load(), tmp_path_factory.mktemp("index"))


def _judging(*verdicts: tuple[str, str], profile: str) -> dict:
    sentence = "At this scale: " + EVIL
    rows = [{"claim": c, "verdict": v, "sentence": sentence, "decisions": [0]} for c, v in verdicts]
    return {"name": "made_up" + EVIL, "profile": profile, "claims": rows, "decisions": [{"p": 0.01}, {}]}


class _Page(HTMLParser):
    """The elements of a page, in order, with their attributes; `text` is what a reader sees."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._silent = 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._silent += tag in ("style", "script")
        self.text += " " if tag in ("td", "th", "br", "p", "dt", "dd", "li", "h1", "h2", "h3") else ""

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        self._silent -= tag in ("style", "script")

    def handle_data(self, data):
        if not self._silent:
            self.text += data


def _page(path: Path) -> _Page:
    return _Page(path.read_text(encoding="utf-8"))


def _figure(folder: Path, name: str) -> list[ElementTree.Element]:
    return list(ElementTree.parse(folder / "figures" / f"{name}.svg").iter())


def _drawn(elements: list[ElementTree.Element], kind: str) -> Counter[tuple[str, int]]:
    """(arm, seed) -> how often it is drawn as a mark of this kind."""
    marks = [e.attrib for e in elements if e.get("data-mark") == kind]
    return Counter((m["data-arm"], int(m["data-seed"])) for m in marks)


def test_the_files(small):
    files = sorted(str(path.relative_to(small)) for path in small.rglob("*") if path.is_file())
    assert files == [*(f"figures/{name}.svg" for name in FIGURES), "report.html", "report.json", "report.md"]


def test_the_paths_are_returned_and_stale_figures_removed(tmp_path):
    paths = write_report(report_data(arms=2, seeds=2, points=4), tmp_path)
    assert paths[0] == tmp_path / "report.html" and all(path.is_file() for path in paths)
    assert (tmp_path / "figures" / "noise_floor.svg").is_file()
    write_report({}, tmp_path)
    assert not list((tmp_path / "figures").iterdir())


@pytest.mark.parametrize("size", ["small", "big"])
def test_every_arm_and_seed_is_drawn(size, small, big):
    folder, data = (small, report_data()) if size == "small" else (big[0], report_data(arms=10, points=100))
    curves, norms = (
        _drawn(_figure(folder, "learning_curves"), "seed"),
        _drawn(_figure(folder, "gradient_norms"), "seed"),
    )
    rates, slopes = (
        _drawn(_figure(folder, "learning_rate_curves"), "tuning"),
        _drawn(_figure(folder, "paired_slopes"), "pair"),
    )
    measured = _drawn(_figure(folder, "also_measured"), "run")
    for arm in data["arms"]:
        for run in arm["members"]:
            if not run["twin"]:
                assert measured[arm["arm"], run["seed"]] == ("prefix_loss" in run["metrics"])
            if run["curve"] and not run["twin"]:
                assert curves[arm["arm"], run["seed"]] and norms[arm["arm"], run["seed"]], (arm["arm"], run["seed"])
            if not arm["baseline"]:
                assert slopes[arm["arm"], run["seed"]], (arm["arm"], run["seed"])
        for run in arm["tuning"]:
            assert rates[arm["arm"], run["seed"]] >= 4, (arm["arm"], run["seed"])
    html = _page(folder / "report.html")
    inline = Counter((a["data-arm"], a["data-seed"]) for _, a in html.elements if a.get("data-mark") == "seed")
    assert sum(inline.values()) == sum(curves.values()) + sum(norms.values())


def test_every_part_of_a_chart_is_one_that_vega_lite_knows(small, monkeypatch):
    """`write_report` leaves this check out, for it takes longer than the drawing."""
    report = complete(report_data())
    checked = [figure for draw in write.FIGURES if (figure := draw(report))]
    assert {f"{figure.name}.svg": figure.file() for figure in checked} == {
        path.name: path.read_text() for path in (small / "figures").glob("*.svg")
    }
    monkeypatch.setattr(Sheet, "upright", lambda sheet, *_: sheet._layer([]).mark_rule(strokeDash="dotted"))
    with pytest.raises(SchemaValidationError, match="dotted"):
        [draw(report) for draw in write.FIGURES]


def test_means_chosen_rates_and_references_are_marked(small):
    curves, rates = _figure(small, "learning_curves"), _figure(small, "learning_rate_curves")
    assert {e.get("data-arm") for e in curves if e.get("data-mark") == "mean"} == {"pre", "post", "none"}
    assert [e.get("data-arm") for e in rates if e.get("data-mark") == "chosen"] == ["pre", "post", "none"]
    titles = {e.text for e in curves if e.tag.endswith("title")}
    assert {"unigram entropy: 3.12", "post, seed 0: done", "none, seed 3: diverged"} <= titles


def test_the_baseline_is_grey_and_dashed_and_an_arm_keeps_its_colour(small):
    roles: dict[str, set[str]] = {}
    for name in FIGURES:
        for element in _figure(small, name):
            if element.get("data-mark") == "mean":
                roles.setdefault(element.attrib["data-arm"], set()).add(element.attrib["class"])
                if element.get("data-arm") == "pre" and name != "noise_floor":
                    assert element.get("stroke-dasharray")
    assert roles == {"pre": {"s-base"}, "post": {"s-arm0"}, "none": {"s-arm1"}}


def test_a_diverged_run_is_marked_listed_and_does_not_flatten_the_rest(small):
    curves = _figure(small, "learning_curves")
    assert _drawn(curves, "seed")["none", 3] == 2  # its line, and a triangle where it leaves
    paths = [e.get("d") for e in curves if e.get("data-mark") == "seed" and e.get("data-arm") == "none"]
    finished = [y for path in paths if path.count("L") > 20 for y in map(float, re.findall(r",(-?[\d.]+)", path)[-5:])]
    assert max(finished) - min(finished) > 15  # pixels between the seeds at the end: loss 48 is not on the scale
    text = " ".join(_page(small / "report.html").text.split())
    assert "none 3 (test) 1e−3 diverged at step 240" in text
    assert "post 6 (test) 3e−3 failed XlaRuntimeError: out of memory" in text
    assert "none 7 (test) 1e−3 not run yet" in text


def test_the_sections_come_in_order(small):
    html = (small / "report.html").read_text(encoding="utf-8")
    order = "asked fixed certainty verdicts reached learning-rates curves measured pairs stability cost confounds noise"
    places = [html.index(f'<section id="{name}">') for name in (*order.split(), "checks", "literature", "provenance")]
    assert places == sorted(places)
    assert html.index("<h1>") < html.index('class="badge supported"') < places[0]


def test_a_stranger_learns_what_was_asked_held_fixed_and_how_sure_we_are(small):
    text = " ".join(_page(small / "report.html").text.split())
    for part in (
        "51 of 56 members done; 3 diverged (a result), 1 failed, 1 not run yet.",
        "Does it matter whether layer norm stands before the sublayer",
        "all arms have the same tokens and depth",
        "differ from the baseline only in model.norm.placement",
        "chosen among 4 rates between 3e−4 and 1e−2 on 2 tuning seeds",
        "The best rate of post lies at the edge of its grid",
        "Holm's correction over 2 comparisons",
        "Differences smaller than 0.01 nats per token are treated as no difference",
        "1 of 2 comparisons was registered or edited after data existed",
        "To settle it: run about 24 paired seeds",
        "expected beforehand: mixed",
        "python -m ablations run prenorm --profile=demo",
        "100,864 0.99×",
    ):
        assert part in text, part


def test_a_complete_report_has_no_banner(tmp_path):
    data = report_data(arms=2, seeds=2, points=4)
    data["arms"][1]["members"] = [m for m in data["arms"][1]["members"] if m["state"] == "done"]
    data["progress"] = {"planned": 9, "done": 8, "diverged": 1, "failed": 0, "missing": 0, "tampered": []}
    write_report(data, tmp_path)
    assert "banner" not in {a.get("class") for _, a in _page(tmp_path / "report.html").elements}
    data["progress"]["tampered"] = ["runs/x/record"]
    write_report(data, tmp_path)
    assert "Altered after they were written: runs/x/record" in _page(tmp_path / "report.html").text


def test_markup_in_names_notes_and_errors_is_text(evil):
    html = _page(evil / "report.html")
    assert not [tag for tag, _ in html.elements if tag in ("script", "iframe", "object", "embed", "form")]
    assert not [key for _, attributes in html.elements for key in attributes if key.startswith("on")]
    assert html.text.count("alert(1)") > 20
    for path in (evil / "figures").glob("*.svg"):
        tags = {e.tag.rpartition("}")[2] for e in ElementTree.parse(path).iter()}
        assert tags <= {"svg", "g", "path", "line", "rect", "text", "title", "desc", "style"}, path.name
    outside_code = re.sub(r"```.*?```", "", (evil / "report.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert "<" not in outside_code and "&lt;script&gt;" in outside_code


def test_nothing_is_loaded_from_anywhere(evil, small, index):
    for path in (evil / "report.html", small / "report.html", index, *(small / "figures").glob("*.svg")):
        text = path.read_text(encoding="utf-8")
        for tag, attributes in _Page(text).elements:
            for key in ("src", "href", "xlink:href", "action", "data", "poster", "srcset", "background"):
                target = attributes.get(key)
                assert target is None or target.startswith("#") or target == "data:," or tag == "a", (
                    path.name,
                    tag,
                    target,
                )
                assert target is None or "//" not in target, (path.name, tag, target)
        assert "url(" not in text and "@import" not in text, path.name
        policies = [a["content"] for tag, a in _Page(text).elements if a.get("http-equiv")]
        assert path.suffix == ".svg" or policies[0].startswith("default-src 'none'")


def test_ten_arms_of_eight_seeds_and_a_hundred_points_fit(big):
    folder, seconds = big
    assert (folder / "report.html").stat().st_size < 1_000_000
    assert seconds < 15  # of CPU


def test_curves_are_thinned_to_a_hundred_points_with_both_ends():
    data = complete(report_data(arms=2, seeds=1, points=1000))
    curve = data["arms"][0]["members"][0]["curve"]
    assert len(curve) == 100 and curve[0][0] == 0 and curve[-1][0] == 500_000


def test_the_same_data_gives_the_same_bytes(tmp_path):
    """Also in another process, with other hashes, after other drawings, and whatever the order of the keys."""
    data = report_data(arms=3, seeds=2, points=6)
    write_report(data, tmp_path / "a")
    code = (
        "import json, sys; from pathlib import Path; from ablations.report import write_report\n"
        "data = json.load(open(sys.argv[1]))\n"
        "write_report(dict(reversed(data.items())), Path(sys.argv[2]))"
    )
    (tmp_path / "data.json").write_text(json.dumps(data))
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "data.json"), str(tmp_path / "b")],
        check=True, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    a, b = (
        {str(p.relative_to(tmp_path / side)): p.read_bytes() for p in (tmp_path / side).rglob("*") if p.is_file()}
        for side in "ab"
    )
    assert a.keys() == b.keys()
    assert [name for name in a if a[name] != b[name]] == []


def test_the_json_is_canonical_and_strict(tmp_path):
    data = report_data(arms=2, seeds=2, points=4)
    data["noise"][0]["sigma"] = float("nan")
    data["decisions"][0]["interval95"] = [float("-inf"), 0.2]
    data["headline"] = "control \x00\x1b, lone surrogate \ud800, umlaut ä"
    write_report(data, tmp_path)
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    read = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not strict JSON"))
    assert text == json.dumps(read, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    assert read["noise"][0]["sigma"] is None and read["decisions"][0]["interval95"] is None
    assert read["headline"] == "control \ufffd\ufffd, lone surrogate \ufffd, umlaut ä"
    assert read["arms"][0]["members"][0]["curve"] == data["arms"][0]["members"][0]["curve"]


def _without_numbers(value, key=""):
    if isinstance(value, dict):
        return {k: _without_numbers(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_numbers(v, key) for v in value]
    return value if isinstance(value, str | bool) or key == "seed" else None


def _without_rows(value):
    if isinstance(value, dict):
        return {k: _without_rows(v) for k, v in value.items()}
    return [] if isinstance(value, list) else value


def _unfinished(data):
    for arm in data["arms"]:
        for run in (*arm["members"], *arm["tuning"]):
            run.update(state="missing", value=None, curve=[], train_curve=[], metrics={}, seconds=None)
    data["decisions"] = []
    return data


def _undecidable(data):
    """Estimates of every kind, some without intervals, arms that do not exist, and claims that point nowhere."""
    kinds = ("recovered fraction", "sensitivity ratio", "exponent", "claimed best against worst", "difference")
    data["decisions"] = [
        {
            **data["decisions"][0],
            "estimate_name": kind,
            "estimate_title": kind,
            "estimate": 0.7,
            "interval90": [0.5, 0.9],
            "interval95": ends,
        }
        for kind in kinds
        for ends in ([0.4, 1.1], None)
    ]
    data["decisions"].append(
        {"type": "ordering", "arms": ["post", "pre", "gone"], "metric": "accuracy", "better": "higher"}
    )
    data["decisions"].append({"type": "exact", "check": "tests::norm", "verdict": "supported"})
    data["claims"].append({"claim": "lost", "decisions": [99, -1, "x"]})
    return data


PARTIAL = {
    "nothing at all": lambda data: {},
    "no rows": _without_rows,
    "no numbers": _without_numbers,
    "nothing has run": _unfinished,
    "odd comparisons": _undecidable,
    "no baseline": lambda data: {**data, "arms": data["arms"][1:]},
    "smoke": lambda data: {**data, "verdicts": False, "profile": "smoke"},
    "higher is better": lambda data: {
        **data,
        "conditions": [{"condition": c, "better": "higher", "metric": "accuracy"} for c in ("default", "deep")],
    },
    "conditions without a word": lambda data: {**data, "conditions": []},
}


@pytest.mark.parametrize("name", PARTIAL)
def test_whatever_is_missing_the_report_renders(name, tmp_path):
    data = PARTIAL[name](copy.deepcopy(report_data(seeds=3, points=5)))
    write_report(data, tmp_path)
    html = _page(tmp_path / "report.html")
    assert {"asked", "verdicts", "provenance"} <= {a.get("id") for _, a in html.elements}
    assert not re.search(r"\b(None|nan|inf|Undefined)\b", html.text), name
    for path in (tmp_path / "figures").glob("*.svg"):
        assert not re.search(r"NaN|undefined|Infinity", path.read_text(encoding="utf-8")), path.name
    if name == "smoke":
        assert "no verdict" in html.text


def test_data_that_is_not_data_is_refused(tmp_path):
    with pytest.raises(UserError, match="from a dictionary, not from list"):
        write_report([], tmp_path)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="holds a object"):
        write_report({"headline": object()}, tmp_path)


def test_the_markdown_table_has_a_cell_for_every_column(small, evil):
    for folder in (small, evil):
        lines = (folder / "report.md").read_text(encoding="utf-8").splitlines()
        width = 0
        rows = 0
        for line in lines:
            cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
            assert not (cells and width) or cells == width, line
            width = cells
            rows += bool(cells)
        assert rows > 15
    text = (small / "report.md").read_text(encoding="utf-8")
    assert "**supported**: the difference is as claimed |" in text
    assert all(f"](figures/{name}.svg)" in text for name in FIGURES)


def test_markdown_signs_are_text():
    assert markdown_text("a|b\n<b>_x_</b> `c` [d](e) *f*") == (r"a\|b &lt;b&gt;\_x\_&lt;/b&gt; \`c\` \[d\](e) \*f\*")


def test_the_index_lists_every_claim_and_can_be_filtered(index):
    page, rows = _page(index), claims.load()
    articles = {a["id"]: a for tag, a in page.elements if tag == "article"}
    assert list(articles) == list(rows)
    for claim in rows.values():
        shown = articles[claim.id]
        assert (shown["data-kind"], shown["data-ablation"]) == (claim.kind, claim.ablation)
        assert (shown["data-section"], shown["data-surprise"]) == (claim.section, "yes" if claim.surprise else "no")
    html = index.read_text(encoding="utf-8")
    for name, key in (
        ("verdict", "data-verdict"),
        ("kind", "data-kind"),
        ("section", "data-section"),
        ("ablation", "data-ablation"),
    ):
        options = re.search(rf'<select name="{name}">(.*?)</select>', html)[1]
        offered = set(_Page(options.replace("<option>", "\n")).text.split("\n")) - {"any"}
        assert offered == {a[key] for a in articles.values()}, name
    assert [tag for tag, a in page.elements if "hidden" in a] == ["form", "p"]  # without the script, a plain list


def test_the_index_shows_the_verdict_of_the_largest_profile_and_says_what_is_open(index):
    articles = {a["id"]: a for tag, a in _page(index).elements if tag == "article"}
    assert articles["rank_collapse"]["data-verdict"] == "refuted"  # quick above demo
    assert articles["layernorm_statistics"]["data-verdict"] == "inconclusive"
    assert articles["rope_relative_only"]["data-verdict"] == "not measured yet"  # smoke gives none
    assert articles["alibi_formula"]["data-verdict"] == "not measured yet"  # registered, but nothing ran
    text = " ".join(_page(index).text.split())
    assert "2 of 244 claims measured" in text
    assert "not measured yet expected: supported exact rope_relative_only" in text
    links = {a["href"] for tag, a in _page(index).elements if tag == "a"}
    assert links == {f"{report_folder(_judging(profile=p))}/report.html" for p in ("quick", "demo")}
    assert all(re.fullmatch(r"[\w-]+/report\.html", link) for link in links)


def test_a_refutation_shows_the_test_it_rests_on(tmp_path):
    data = report_data()
    for against, shown, hidden in ((True, "| 0.012 | 0.034 |", "| 0.96 |"), (False, "| 0.96 | 0.97 |", "| 0.012 |")):
        sides = {"p": 0.96, "p_adjusted": 0.97, "counter_p": 0.012, "counter_p_adjusted": 0.034}
        data["decisions"][0].update(**sides, against=against)
        write_report(data, tmp_path)
        text = (tmp_path / "report.md").read_text(encoding="utf-8")
        assert shown in text and hidden not in text


def test_what_a_test_decides_has_neither_metric_nor_pairs(tmp_path):
    exact = {"claim": "c", "type": "exact", "check": "tests/claims/test_x.py::TestX", "verdict": "supported"}
    write_report({"name": "n", "decisions": [exact]}, tmp_path)
    shown = _page(tmp_path / "report.html").text
    assert "proof by test" in shown and "loss: proof by test" not in shown
    assert "(proof by test)" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_the_index_controls_false_discoveries_over_the_whole_suite():
    """Twenty tests of which one is at 0.01: alone it counts, among forty hypotheses it does not."""
    one = {"p": 0.01, "counter_p": 1.0, "against": False}
    other = {"p": 0.9, "counter_p": 0.9, "against": False}
    reports = [complete({"name": f"r{i}", "profile": "quick", "decisions": [other] if i else [one]}) for i in range(20)]
    alone, among = suite(reports[:1]), suite(reports)
    assert alone == {("r0", "quick", 0): pytest.approx(0.02)}  # a test for and a test against
    assert among["r0", "quick", 0] == pytest.approx(0.4) and among["r1", "quick", 0] == pytest.approx(0.9 * 40 / 39)
    refuted = {"p": 1.0, "counter_p": 0.01, "against": True}  # its verdict rests on the other test
    reports = [complete({"name": "r", "profile": "quick", "decisions": [refuted, {}]})]
    assert suite(reports) == {("r", "quick", 0): pytest.approx(0.02)}


def test_the_index_tells_what_tests_and_formulas_settled(tmp_path):
    settled = {name: Overall(v, f"because of {name}", {}, False) for name, v in SETTLED.items()}
    reports = [_judging(("rank_collapse", "refuted"), profile="quick")]
    page = _page(write_index(reports, claims.load(), tmp_path, settled))
    articles = {a["id"]: a["data-verdict"] for tag, a in page.elements if tag == "article"}
    assert articles["alibi_formula"] == "supported"
    assert articles["rank_collapse"] == "refuted"  # what was measured stands above
    text = " ".join(page.text.split())
    assert "because of alibi_formula" in text and "because of rank_collapse" not in text
    assert "Over the whole suite, 1 of 1 comparisons stand out at a false discovery rate of 5%" in text


def test_only_the_script_of_the_index_may_run(index):
    html = index.read_text(encoding="utf-8")
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert len(scripts) == 1 and f"script-src &#39;sha256-{digest}&#39;" in html


def test_without_the_extra_the_error_says_what_to_install(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("ablations.report.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "altair", None)
    with pytest.raises(UserError, match=re.escape("pip install -e '.[report]'")):
        write_report({}, tmp_path)


def test_importing_the_package_imports_no_drawing_library():
    code = "import sys, ablations.report; print({'altair', 'vl_convert', 'jinja2', 'jax'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"
