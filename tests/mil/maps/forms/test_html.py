"""The page from disk in headless Chromium: what it shows lies where it belongs, and it asks nobody."""

import re
from dataclasses import replace

import numpy as np
import pytest
from drawn_slides import White, attention, drawn_of
from map_pages import box, heard, hide_controls, open_browser, picture, until
from matplotlib import colormaps

from mil.maps.forms import html
from mil.tasks.classification import Classification

WIDTH, HEIGHT, SIDE = 9500, 6200, 512
CORNERS = [(x, y) for y in range(-163, HEIGHT, SIDE) for x in range(-99, WIDTH, SIDE)]  # over each edge
MARKED = CORNERS.index((3 * SIDE - 99, 2 * SIDE - 163))
WARMEST = np.array(colormaps["inferno"](255)[:3]) * 255
HOSTILE = "</script><script>hacked = 1</script>"


class Marked(White):
    """White, black in the marked patch alone."""

    def read(self, level, x, y, width, height, reduction=1):
        columns, rows = (np.arange(n * reduction) + start * reduction for n, start in ((width, x), (height, y)))
        left, top = CORNERS[MARKED]
        black = np.outer((rows >= top) & (rows < top + SIDE), (columns >= left) & (columns < left + SIDE))
        pixels = np.where(black[..., None], 0, 255)[:, :, [0, 0, 0]]
        return pixels.reshape(height, reduction, width, reduction, 3).mean((1, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    values = np.linspace(-1, 0, len(CORNERS))
    values[MARKED] = 3
    slide = attention(CORNERS, np.ones(len(CORNERS)), SIDE, WIDTH, HEIGHT)
    slide = replace(slide, patch_logits=np.stack([-values, values], 1) / 2, task=Classification(("normal", HOSTILE), 1))
    path = tmp_path_factory.mktemp("page") / "s1.html"
    html.write(path, drawn_of(slide, "logit", Marked(WIDTH, HEIGHT)))
    return path


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


@pytest.fixture
def opened(browser, path):
    """The page, what its console said and what it asked for."""
    page = browser.new_page(viewport={"width": 1300, "height": 800})
    said, asked = heard(page), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    until(page, "[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    yield page, said, asked
    page.close()


def marked_on(page):
    """left, top, right, bottom of the marked patch in the map's own pixels."""
    x, y = CORNERS[MARKED]
    corners = page.evaluate(f"[[{y}, {x}], [{y + SIDE}, {x + SIDE}]].map(p => map.latLngToContainerPoint(p))")
    return np.array([corners[0]["x"], corners[0]["y"], corners[1]["x"], corners[1]["y"]])


def shown(page, opacity):
    page.evaluate(f"get('opacity').value = {opacity}; get('opacity').oninput()")
    return picture(page)


def test_slide_and_map_lie_where_they_belong(opened):
    page, said, asked = opened
    hide_controls(page)
    assert np.abs(box(shown(page, 0).max(2) < 90) - marked_on(page)).max() <= 1.5
    assert np.abs(box(np.abs(shown(page, 100) - WARMEST).max(2) < 40) - marked_on(page)).max() <= 1.5
    assert said == [] and {url.split(":")[0] for url in asked} <= {"file", "data"}
    assert [url for url in asked if url.startswith("file")] == [page.url]


def test_a_patch_finds_its_place(opened):
    page, said, _ = opened
    page.locator("#highest button").first.click()
    page.wait_for_timeout(1500)
    (x, y), centre = CORNERS[MARKED], page.evaluate("map.getCenter()")
    assert (centre["lng"], centre["lat"]) == pytest.approx((x + SIDE / 2, y + SIDE / 2), abs=2)
    assert page.inner_text("#place") == f"score 3 at x {x:,}, y {y:,}"
    page.evaluate("mark.remove()")
    hide_controls(page)
    close = shown(page, 0)
    assert np.abs(box(close.max(2) < 90) - marked_on(page)).max() <= 1.5  # the patch's own picture is there
    page.keyboard.press("2")
    page.wait_for_timeout(1500)
    second = page.evaluate("[data.patches.highest[1].x, data.patches.highest[1].y]")
    centre = page.evaluate("map.getCenter()")
    assert (centre["lng"], centre["lat"]) == pytest.approx(np.add(second, SIDE / 2), abs=2)
    page.keyboard.press("]")
    assert page.input_value("#opacity") == "10"
    page.keyboard.press("0")
    page.wait_for_timeout(1000)
    assert page.evaluate("map.getBounds().contains(home)")
    assert said == []


def test_the_bar_is_as_long_as_it_says(opened):
    page, _, _ = opened
    label, width = (
        page.inner_text(".leaflet-control-scale-line"),
        page.evaluate("parseFloat(document.querySelector('.leaflet-control-scale-line').style.width)"),
    )
    length, unit = re.fullmatch(r"(\d+) (µm|mm)", label).groups()
    left, _, right, _ = marked_on(page)
    wanted = float(length) * {"µm": 1, "mm": 1000}[unit]
    assert width * SIDE * 0.25 / (right - left) == pytest.approx(wanted, rel=0.01)


def test_names_are_text_and_no_other_script_runs(opened):
    page, said, _ = opened
    assert HOSTILE in page.inner_text("aside") and page.evaluate("typeof hacked") == "undefined"
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'hacked = 1'}))")
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('img'), {src: 'https://example.org/a.png'}))"
    )
    page.wait_for_timeout(300)
    assert page.evaluate("typeof hacked") == "undefined"
    assert len(said) == 2 and all("Content Security Policy" in line for line in said)


def test_on_a_narrow_screen_nothing_is_cut(browser, path):
    page = browser.new_page(viewport={"width": 400, "height": 800})
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert page.evaluate("map.getBounds().contains(home)")
    page.close()
