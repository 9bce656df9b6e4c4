"""The report in a real chromium: it opens from a file, sorts, filters, tells cells, and asks nobody for anything."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from sample_results import HOSTILE, write_sample

from runners.reporting.page import to_html
from runners.rows import selection
from runners.store.names import visible
from runners.table import load

CHROMIUM = shutil.which("chromium")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install -y chromium"),
]

MANY = 10_000

# time from the event to the next frame, by the page's own clock
FILTER = """async (text) => {
    const input = document.getElementById("search");
    const start = performance.now();
    input.value = text;
    input.dispatchEvent(new Event("input", { bubbles: true }));
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    return (performance.now() - start) / 1000;
}"""

READY = """() => performance.getEntriesByName("table")[0].startTime / 1000"""


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Debian's chromium refuses its sandbox to root, as which containers run
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    write_sample(folder)
    path = folder / "report.html"
    path.write_text(to_html(selection.read_rows(folder), str(folder)))
    return path


@pytest.fixture(params=[380, 1440], ids=["380 px", "1440 px"])
def page(request, chromium, report):
    """The open page; at the end it must have been silent and alone."""
    page = chromium.new_page(viewport={"width": request.param, "height": 900})
    complaints, requests = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda sent: requests.append(sent.url))
    page.goto(report.as_uri())
    yield page
    assert complaints == []
    assert requests == [report.as_uri()]
    page.close()


def column(page, name: str) -> list[str]:
    """Texts of a column, of the rows on screen."""
    heads = page.locator("#rows thead .name").all_text_contents()
    return page.locator(f"#rows tbody tr.row td:nth-child({heads.index(name) + 1})").all_text_contents()


def heading(page, name: str):
    return page.locator("#rows thead button").filter(has=page.get_by_text(name, exact=True))


def show_charts(page) -> None:
    page.locator(".chart").first.scroll_into_view_if_needed()
    page.wait_for_selector(".chart .main-svg", timeout=60_000)


def test_the_page_opens_and_nothing_is_wider_than_it(page):
    assert page.title() == "Attention mechanisms"
    assert page.locator("#shown").text_content() == "1–37 of 37"  # noqa: RUF001
    show_charts(page)
    for chart in page.locator(".chart").all():
        chart.scroll_into_view_if_needed()
        chart.locator(".main-svg").first.wait_for(timeout=60_000)
    width, viewport = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert width <= viewport
    assert page.evaluate("document.querySelector('.box').scrollWidth >= document.querySelector('.box').clientWidth")


def test_figures_fit_the_screen_and_their_letters_can_be_read(page):
    images = page.locator("figure img")
    assert images.count() >= 3
    width = page.evaluate("innerWidth")
    for image in images.all():
        image.scroll_into_view_if_needed()
        box = image.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width
        natural = image.evaluate("image => image.naturalWidth")
        # 6 points of print, 96 pixels to an inch
        assert 6 * 96 / 72 * box["width"] / natural > 7


def test_charts_are_drawn_before_printing(page):
    charts = page.locator(".chart").count()
    assert page.locator(".chart .main-svg").count() < charts * 3, "nobody has scrolled"
    page.locator(".plot.js-plotly-plot").nth(charts - 1).wait_for(state="attached", timeout=60_000)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    boxes = [chart.bounding_box() for chart in page.locator(".chart .svg-container").all()]
    assert len(boxes) == charts
    assert all(box["width"] == 680 and box["height"] > 300 for box in boxes)
    assert page.locator(".chart .points path.point").count() > 10
    assert not page.locator("nav").is_visible() and not page.locator(".pager").is_visible()
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.locator(".chart .svg-container").first.scroll_into_view_if_needed()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_it_sorts_both_ways_with_what_is_missing_last(page):
    heading(page, "train_step_ms").click()
    up = column(page, "train_step_ms")
    numbers = [float(text) for text in up if text != "–"]  # noqa: RUF001
    assert numbers == sorted(numbers)
    assert len(numbers) == 33
    assert up[33:] == ["–"] * 4  # noqa: RUF001
    heading(page, "train_step_ms").click()
    assert [float(text) for text in column(page, "train_step_ms")[:33]] == numbers[::-1]
    assert page.locator('th[aria-sort="descending"] .name').all_text_contents() == ["train_step_ms"]
    heading(page, "configuration").click()
    assert list(dict.fromkeys(column(page, "configuration"))) == [
        *("axial", "bra topk=1", "bra topk=4", "bra topk=8", "bra topk=16", "swin", "vanilla")
    ]


def test_it_filters_by_words_and_by_choice(page):
    page.fill("#search", "swin seeds 2")
    assert set(column(page, "configuration")) == {"swin"}
    page.fill("#search", "")
    page.select_option('[data-filter="attention"]', "bra")
    page.select_option('[data-filter="resolution"]', "128x128")
    assert len(column(page, "seed")) == 12
    assert "filtered from 37" in page.locator("#shown").text_content()
    page.select_option('[data-filter="status"]', "oom")
    assert set(column(page, "configuration")) == {"bra topk=16"}
    page.fill("#search", "no such thing")
    assert page.locator("#shown").text_content() == "no rows, filtered from 37"


def test_a_row_opens_with_its_command_and_its_error_as_text(page):
    page.select_option('[data-filter="status"]', "oom")
    page.locator("#rows .open").first.click()
    card = page.locator(".card")
    assert card.locator("code").text_content() == (
        "python runners/sweep.py --attn bra --topk 16 --resolution 128 --seeds 0"
    )
    assert visible(HOSTILE) in card.locator("dl").text_content()
    assert page.locator("#rows script, #rows img").count() == 0
    page.locator("#rows .open").first.click()
    assert page.locator(".card").count() == 0


def test_every_column_can_be_shown(page):
    before = page.locator("#rows thead th").count()
    page.check("#all-columns")
    assert "error_message" in page.locator("#rows thead .name").all_text_contents()
    assert page.locator("#rows thead th").count() > before


def test_hover_tells_the_cell(page):
    show_charts(page)
    chart = page.locator(".chart").first
    chart.scroll_into_view_if_needed()
    box = chart.locator(".points path.point").last.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    label = chart.locator(".hoverlayer .hovertext")
    label.wait_for(timeout=10_000)
    text = label.text_content()
    assert "MACs (GMAC)" in text
    assert "3 seeds" in text


def test_a_failed_cell_is_a_cross_on_a_rail_and_says_why(page):
    show_charts(page)
    chart = page.locator(".chart").first
    chart.get_by_label("Conditions").select_option("128x128 px")
    chart.get_by_label("Across").select_option("infer_latency_ms")
    cross = chart.locator(".scatterlayer .trace").last.locator("path.point")
    assert cross.count() == 1
    box = cross.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    label = chart.locator(".hoverlayer .hovertext")
    label.wait_for(timeout=10_000)
    assert "bra topk=16" in label.text_content()
    assert "failed: oom" in label.text_content()
    assert "</script>" in label.text_content()
    assert label.bounding_box()["x"] >= 0


# --- 10,000 rows


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """A table of that size, with the columns of real rows and every command and condition different."""
    folder = tmp_path_factory.mktemp("many")
    write_sample(folder, sides=(64,))
    sample = load(folder)
    parts = []
    for copy in range(-(-MANY // len(sample))):
        side = 64 + 32 * (copy % 50)
        part = sample.assign(height_px=side, width_px=side, resolution=f"{side}x{side}", steps=400 + copy // 50)
        parts.append(part.assign(cell_key=part["cell_key"] + str(copy), command=part["command"] + f" --steps {copy}"))
    pd.concat(parts).head(MANY).to_csv(folder / "many.csv", index=False)
    return folder / "many.csv"


def test_ten_thousand_rows_are_found_in_a_page_that_holds_fifty(many, chromium, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(to_html(selection.read_rows(many), "many.csv"))
    table = pd.read_csv(many)
    is_swin = table["attention"] == "swin"
    page = chromium.new_page(viewport={"width": 1440, "height": 900})
    page.goto(path.as_uri())
    opened = page.evaluate(READY)
    shown = page.locator("#shown")
    assert shown.text_content() == "1–50 of 10,000"  # noqa: RUF001
    assert page.locator("#rows tbody tr.row").count() == 50
    found = {"swin": is_swin, "swin steps 405": is_swin & table["command"].str.contains("--steps 405")}
    seconds = []
    for text, rows in found.items():
        seconds.append(page.evaluate(FILTER, text))
        shows = f"1–{min(50, rows.sum())} of {rows.sum():,}, filtered from 10,000"  # noqa: RUF001
        assert shown.text_content() == shows
    page.close()
    print(f"\n{path.stat().st_size / 1e6:.1f} MB; open in {opened:.2f} s, filtered in {max(seconds):.2f} s")
