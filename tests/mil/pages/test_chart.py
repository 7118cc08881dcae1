"""Charts: a known point lies on a known pixel, in SVG and PNG; the page's colours; the same bytes; safe texts."""

import re
import zlib
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from PIL import Image

from mil.pages.chart import LIGHT, Chart
from mil.pages.page import report_style

pytestmark = pytest.mark.usefixtures("true_charts")


def _chart(**more) -> Chart:
    """100 × 100 px between the axes, from (46, 8) to (146, 108)."""
    return Chart((0, 10), (0, 1), size=(156, 146), **more)


def _all(chart: Chart, tag: str) -> list[ElementTree.Element]:
    return ElementTree.fromstring(chart.svg("")).findall(tag)


def _drawn(chart: Chart, colour: str) -> list[str]:
    """The paths of one colour."""
    return [path.attrib["d"] for path in _all(chart, "path") if f"var(--{colour})" in path.attrib["style"]]


def test_a_point_lies_where_the_axes_say():
    chart = _chart()
    chart.line([0, 5, 10], [0, 0.25, 2], "c0")  # beyond the upper end: at the edge
    assert _drawn(chart, "c0") == ["M 46 108 L 96 83 L 146 8"]


def test_a_line_is_broken_where_there_is_no_number():
    chart = _chart()
    chart.line([0, 2, 5, 6, 10], [0, 0.1, np.nan, 0.5, 1], "c3 thin")
    assert _drawn(chart, "c3") == ["M 46 108 L 66 98 M 106 58 L 146 8"]
    assert [p for p in _all(chart, "path") if "stroke-width:1.3" in p.attrib["style"]]


def test_a_band_goes_there_along_its_lower_end_and_back_along_its_upper_one():
    chart = _chart()
    chart.band([0, 5, 7, 10], [0, 0.1, np.nan, 0.2], [1, 0.9, 0.5, 0.8], "c1")
    assert _drawn(chart, "c1") == ["M 46 108 L 96 98 L 146 88 L 146 28 L 96 18 L 46 8 z"]
    chart = _chart()
    chart.band([0, 5], [np.nan] * 2, [1, 1], "c1")
    assert _drawn(chart, "c1") == []


def test_a_dot_is_a_circle_of_its_radius_that_says_what_it_is():
    chart = _chart()
    chart.dot(5, 0.5, "c2", 4.25, "<slide> & “7”")
    chart.dot(-3, 0.5, "c4")  # beyond the lower end
    first, second = _all(chart, "circle")
    assert [first.attrib[key] for key in ("cx", "cy", "r")] == ["96", "58", "4.2"]
    assert first.attrib["style"] == "fill:var(--c2);stroke:var(--sheet)"
    assert [title.text for title in first] == ["<slide> & “7”"] and not len(second)
    assert second.attrib["cx"] == "46"


def test_a_guide_is_dotted():
    chart = _chart()
    chart.guide((0, 10), (0.5, 0.5))
    [guide] = [path for path in _all(chart, "path") if "stroke-dasharray:2,4" in path.attrib["style"]]
    assert guide.attrib["d"] == "M 46 58 L 146 58" and "var(--soft)" in guide.attrib["style"]


def test_what_is_drawn_later_lies_on_top():
    chart = _chart()
    chart.dot(5, 0.5, "c0")
    chart.line([0, 10], [0, 1], "c1")
    chart.band([0, 10], [0, 0], [1, 1], "c2")
    svg = chart.svg("")
    grid = svg.rindex("var(--line)")
    assert grid < svg.index("var(--c0)") < svg.index("var(--c1)") < svg.index("var(--c2)")


def test_ticks_stand_beside_their_lines():
    texts = {text.text: text.attrib for text in _all(_chart(ticks=5), "text")}
    assert texts["6"]["x"] == "106" and texts["0.2"]["x"] == "40"
    assert float(texts["0.2"]["y"]) == pytest.approx(92, abs=1)  # the line stands at 88, the letters are 8 high
    assert [t.text for t in _all(Chart((0, 3), (0, 1), whole_x=True), "text")][:4] == ["0", "1", "2", "3"]
    assert "20k" in [text.text for text in _all(Chart((0, 20_000), (0, 1)), "text")]


def test_labels_are_text_whatever_they_hold():
    chart = _chart(labels=("<script>$x^2$</script>", "line\nbreak\x00"))
    chart.line([0, 1], [0, 1], "c0", named="$\\frac")
    svg = chart.svg('said "so" <b>')
    assert "<script>" not in svg and "&lt;script&gt;$x^2$&lt;/script&gt;" in svg and "linebreak" in svg
    root = ElementTree.fromstring(svg)
    assert root.attrib["aria-label"] == 'said "so" <b>' and root.attrib["role"] == "img"
    turned = [text for text in root.findall("text") if "rotate(-90" in text.get("transform", "")]
    assert [text.text for text in turned] == ["linebreak"]


def _full() -> Chart:
    chart = Chart((0, 10), (0, 1), labels=("epoch", "loss"))
    chart.guide((0, 10), (0.5, 0.5))
    x = np.linspace(0, 10, 201)
    chart.band(x, 0.05 * np.sqrt(x), 0.2 * np.sqrt(x), "c1")
    chart.line(x, 0.1 * np.sqrt(x), "c1", named="validation")
    chart.dot(5, 0.5, "c5", said="kept")
    return chart


def test_all_colours_are_those_of_the_page_which_has_them_in_light_and_dark():
    svg = _full().svg("")
    assert "#" not in svg and "rgb" not in svg  # no colour of its own
    dark = re.findall(r"@media \(prefers-color-scheme: dark\) \{ :root \{(.*?)\}", report_style(), re.DOTALL)
    light = report_style()
    for block in dark:
        light = light.replace(block, "")
    used = set(re.findall(r"var\(--(\w+)\)", svg))
    assert used == {"c1", "c5", "soft", "line", "sheet"}
    for name in used:
        assert f"--{name}: #" in light and f"--{name}: #" in "".join(dark)


def test_files_have_the_colours_of_the_light_page():
    for name, colour in LIGHT.items():
        said = re.search(rf"--{name}: (#\w+)", report_style())[1]
        assert {said, "#" + "".join(2 * digit for digit in said[1:])} & {colour}, name


def test_nothing_in_a_chart_can_clash_with_another_one_or_style_the_page():
    svg = _full().svg("")
    assert "M 0 340" not in svg and svg.count("fill:#") == 0  # no background
    assert not re.search(r"\bid=|url\(|href|<style|<defs|xmlns|font-family|width=\"", svg)
    assert len(svg) < 10_000  # matplotlib's own has 25 kB


def test_the_same_chart_gives_the_same_bytes_and_leaves_matplotlib_as_it_was(tmp_path):
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"lines.linewidth": 9, "path.simplify": False, "font.family": "serif"}):
        chart = _full()
        styled = chart.svg("a")
        assert styled == chart.svg("a")
        chart.save(tmp_path / "styled")
    assert dict(matplotlib.rcParams) == before
    assert _full().svg("a") == styled
    _full().save(tmp_path / "a.v2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.v2.pdf", "a.v2.png", "styled.pdf", "styled.png"]
    for ending in ("png", "pdf"):
        data = (tmp_path / f"a.v2.{ending}").read_bytes()
        assert data == (tmp_path / f"styled.{ending}").read_bytes()
        assert b"Date" not in data


def test_a_known_point_lies_on_a_known_pixel_of_the_file(tmp_path):
    chart = _chart()
    chart.dot(5, 0.25, "c0", 5)
    chart.save(tmp_path / "chart")
    image = np.asarray(Image.open(tmp_path / "chart.png").convert("RGB"), int)
    assert image.shape == (146 * 200 // 72, 156 * 200 // 72, 3)
    blue = np.abs(image - (0x00, 0x72, 0xB2)).max(axis=2) < 3
    y, x = (np.mean(axis) * 72 / 200 for axis in np.nonzero(blue))
    assert x == pytest.approx(96, abs=0.3) and y == pytest.approx(83, abs=0.3)
    assert (image[:3] == 255).all()  # on white


def test_lines_with_names_have_a_legend_in_files_alone(tmp_path):
    chart = _chart()
    chart.line([0, 10], [0, 1], "c0", named="training")
    assert "training" not in chart.svg("")
    chart.save(tmp_path / "with")
    without = _chart()
    without.line([0, 10], [0, 1], "c0")
    without.save(tmp_path / "without")
    inner = [np.asarray(Image.open(tmp_path / f"{name}.png").convert("L"), int) for name in ("with", "without")]
    assert np.abs(inner[0] - inner[1]).max() > 100


def test_the_pdf_is_whole_and_its_text_is_text(tmp_path):
    _full().save(tmp_path / "chart")
    data = (tmp_path / "chart.pdf").read_bytes()
    assert data.startswith(b"%PDF-") and data.rstrip().endswith(b"%%EOF") and b"/MediaBox [ 0 0 380 340 ]" in data
    assert b"/CIDFontType2" in data and b"/Type3" not in data  # embedded as TrueType
    content = next(stream for stream in _streams(data) if b"BT" in stream)
    drawn = b"".join(re.findall(rb"\((.*?)\)", content)).decode("utf-16-be")  # letters stand apart for kerning
    assert "epoch" in drawn and "validation" in drawn


def _streams(pdf: bytes) -> list[bytes]:
    """Contents of the streams that are packed."""
    packed = re.findall(rb"/Filter /FlateDecode[^>]*>>\s*stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL)
    return [zlib.decompress(stream) for stream in packed]
