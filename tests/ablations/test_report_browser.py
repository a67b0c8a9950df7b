"""The pages in a real browser: three widths, light and dark, JavaScript on and off, no network, a silent console."""

from __future__ import annotations

import pytest

pytest.importorskip("altair", reason="reports need the extra [report]")

from ablations import claims
from ablations.report import write_index, write_report
from tests.ablations import browser
from tests.ablations.report_data import report_data

pytestmark = pytest.mark.skipif(
    browser.EXECUTABLE is None, reason="no Chromium on this machine (Debian: apt-get install chromium)"
)
WIDTHS = (360, 800, 1400)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    write_report(report_data(arms=4, seeds=3, points=12), folder / "plain")
    write_report(report_data(arms=3, seeds=3, points=8, conditions=("shallow", "deep"), evil=True), folder / "evil")
    write_index([], claims.load(), folder)
    return folder


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    tab = browser.Browser(tmp_path_factory.mktemp("profile"))
    yield tab
    tab.close()


PAGES = {"plain": "plain/report.html", "evil": "evil/report.html", "index": "index.html"}
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
CONTRAST = """(() => {
  const linear = (c) => (c <= 10.3 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
  const light = (color) => {
    const [r, g, b] = color.match(/[\\d.]+/g).map(Number).map(linear);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
  };
  const page = light(getComputedStyle(document.body).backgroundColor);
  const ratio = (color) => Math.max(light(color) / page, page / light(color));
  const least = (selector, property) =>
    Math.min(...[...document.querySelectorAll(selector)].map((e) => ratio(getComputedStyle(e)[property])));
  return {
    text: least(".chart text", "fill"),
    lines: least("path[data-mark=mean][stroke], path[data-mark=seed][stroke]", "stroke"),
    body: least("body", "color"),
  };
})()"""


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_pages_fit_their_width_load_nothing_and_say_nothing(tab, folder, name, width):
    for dark, scripts in ((False, True), (True, False)):
        tab.open(folder / PAGES[name], width, dark, scripts)
        assert tab.evaluate(OVERFLOW) <= 0, (name, width, dark)
        assert tab.messages == []
        assert [url for url in tab.requests if not url.startswith(("file:", "data:"))] == []


def test_the_overflow_check_can_fail(tab, folder):
    tab.open(folder / "plain" / "report.html", 360)
    tab.evaluate("document.body.insertAdjacentHTML('beforeend', '<div style=\"width:2000px\">x</div>')")
    assert tab.evaluate(OVERFLOW) > 0


def test_the_console_is_really_listened_to_and_markup_cannot_run(tab, folder, tmp_path):
    page = (folder / "plain" / "report.html").read_text(encoding="utf-8")
    sabotaged = tmp_path / "report.html"
    added = "<main><script>document.title = 'ran'</script><img src='https://x.example/a'>"
    sabotaged.write_text(page.replace("<main>", added), encoding="utf-8")
    tab.open(sabotaged, 800)
    assert any("Content Security Policy" in message for message in tab.messages)
    assert tab.evaluate("document.title") != "ran"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_charts_are_visible_without_scripts_and_legible_in_both_schemes(tab, folder, dark):
    tab.open(folder / "plain" / "report.html", 360, dark, scripts=False)
    sizes = tab.evaluate("[...document.querySelectorAll('svg.chart')].map(e => e.getBoundingClientRect().height)")
    assert len(sizes) > 10 and min(sizes) > 100
    contrast = tab.evaluate(CONTRAST)
    assert contrast["body"] > 10 and contrast["lines"] >= 3 and contrast["text"] >= 3, contrast
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(17, 22, 29)" if dark else "rgb(255, 255, 255)")


def test_text_in_a_chart_stays_readable_on_a_phone(tab, folder):
    tab.open(folder / "plain" / "report.html", 360)
    heights = tab.evaluate("[...document.querySelectorAll('.chart text')].map(e => e.getBoundingClientRect().height)")
    assert min(heights) > 8


def test_the_index_filters_with_scripts_and_is_a_plain_list_without(tab, folder):
    visible = "[...document.querySelectorAll('article')].filter(e => e.offsetParent).length"
    form = "document.querySelector('form').offsetParent !== null"
    tab.open(folder / "index.html", 800, scripts=False)
    assert (tab.evaluate(visible), tab.evaluate(form)) == (244, False)
    tab.open(folder / "index.html", 800)
    assert (tab.evaluate(visible), tab.evaluate(form)) == (244, True)
    change = "(() => { const f = document.forms[0]; %s; f.dispatchEvent(new Event('input', {bubbles: true})); })()"
    rows = list(claims.load().values())
    tab.evaluate(change % "f.surprise.checked = true")
    assert tab.evaluate(visible) == sum(row.surprise for row in rows) == 52
    tab.evaluate(change % "f.kind.value = 'training'")
    both = sum(row.surprise and row.kind == "training" for row in rows)
    assert tab.evaluate(visible) == both > 0
    assert tab.evaluate("document.querySelector('output').textContent") == f"{both} of 244 claims"
    tab.evaluate(change % "f.search.value = 'no such words anywhere'")
    assert tab.evaluate(visible) == 0
    assert tab.evaluate("document.querySelector('.nothing').offsetParent !== null")
    tab.evaluate("document.querySelector('button[type=reset]').click()")
    assert tab.evaluate("new Promise(r => setTimeout(r, 20)) && true")
    tab.evaluate(change % "f.search.value = 'RANK_collapse'")
    assert 0 < tab.evaluate(visible) < 20


def test_the_page_prints_in_light_with_everything_open(tab, folder):
    tab.open(folder / "plain" / "report.html", 800, dark=True)
    tab.call("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.evaluate("document.querySelector('nav').offsetParent") is None
    tab.call("Emulation.setEmulatedMedia", media="")
