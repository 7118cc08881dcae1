"""What the parts of a page look like, and that their texts stay texts."""

import re

import pytest
from markupsafe import Markup

from mil.pages.chart import Chart
from mil.pages.page import draw_sections, table
from mil.pages.parts import (
    Blocks,
    Card,
    Cards,
    Figures,
    Heading,
    Matrix,
    Number,
    Paragraph,
    Picture,
    Points,
    Section,
    Soft,
    Table,
    Tag,
    Verdict,
    number,
)

EVIL = "<script>x</script> & “Co”"
SAFE = "&lt;script&gt;x&lt;/script&gt; &amp; “Co”"


def _drawn(*parts) -> str:
    return draw_sections([Section("A part", parts)])


def _picture(**more) -> Picture:
    return Picture(Chart((0, 1), (0, 1), labels=(EVIL, "")), EVIL, EVIL, EVIL, "name", **more)


@pytest.mark.parametrize(
    ("part", "texts"),
    [
        (Heading(EVIL), 1),
        (Paragraph(EVIL, key=(("c0", EVIL), ("c1", EVIL))), 3),
        (Verdict(EVIL, Tag(EVIL)), 2),
        (Points(((Tag(EVIL), EVIL),)), 2),
        (Cards((Card(EVIL, Number(EVIL, EVIL)),)), 3),
        (Figures((_picture(key=(("c0", EVIL),), tag=Tag(EVIL)),)), 6),
        (Table((EVIL, EVIL), ((EVIL, Number(EVIL, EVIL)), (Soft(EVIL), Tag(EVIL)))), 7),
        (Matrix((EVIL,), ((1,),), ((1.0,),)), 2),
        (Blocks(((EVIL, ((EVIL, EVIL),)),)), 3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_texts_of_every_part_are_escaped(part, texts):
    page = _drawn(part)
    assert "<script>" not in page and page.count(SAFE) == texts


def test_markup_is_drawn_as_it_is():
    assert "<i>now</i>" in _drawn(Markup("<i>now</i>"))


def test_a_section_has_an_anchor_and_its_parts_in_their_order():
    page = draw_sections([Section("Left out", (Paragraph("first"), Heading("then")))])
    assert '<section id="left-out"><h2>Left out</h2>' in page
    assert page.index("<p>first</p>") < page.index("<h3>then</h3>")


def test_a_table_tells_headings_numbers_and_remarks_apart():
    page = _drawn(Table(("", "AUROC", "means"), (("a", Number("0.9", "0.8 – 1.0"), Soft("s")),), last_left=True))
    assert '<th scope="row" class="left">a</th><td><b>0.9</b> <span class="soft">0.8 – 1.0</span></td>' in page
    assert '<td class="left wrap"><span class="soft">s</span></td>' in page
    assert '<th scope="col" class="left wrap">means</th>' in page


def test_a_table_of_cells_that_are_html():
    page = table(["<i>a</i>", "b"], [["x", "<b>1</b>"]])
    assert isinstance(page, Markup) and "<i>a</i>" in page and "<td><b>1</b></td>" in page


def test_a_matrix_marks_what_is_right():
    page = _drawn(Matrix(("a", "b"), ((3, 1), (0, 2)), ((0.75, 0.25), (0, 1))))
    cells = re.findall(r'<td class="cell (\w+)" style="--share:([\d.]+)"><b>(\d)</b> <span>(\d+)%</span>', page)
    assert cells == [
        ("right", "0.750", "3", "75"),
        ("wrong", "0.250", "1", "25"),
        ("wrong", "0.000", "0", "0"),
        ("right", "1.000", "2", "100"),
    ]


def test_names_of_colours_stand_before_the_text():
    page = _drawn(Paragraph("; and so on.", soft=True, key=(("c0", "training"), ("c1", "validation"))))
    key = '<i class="key c0"></i>training <i class="key c1"></i>validation; and so on.</p>'
    assert f'<p class="soft">{key}' in page


def test_a_picture_is_a_chart_with_its_words():
    page = _drawn(Figures((_picture(tag=Tag("fine", "good")),), small=True))
    assert '<div class="small figures">' in page and page.count("<svg") == 1
    assert '<span class="tag good">fine</span>' in page


def test_pictures_of_a_section():
    section = Section("a", (Paragraph("x"), Figures((_picture(), _picture()))))
    assert [picture.name for picture in section.pictures] == ["name", "name"]


def test_a_figure_becomes_a_number():
    assert number({"value": 0.5, "low": 0.25, "high": 0.75}) == Number("0.500", "0.250 – 0.750")
    assert number({"value": None, "low": None, "high": None}) == Number("–", "undefined")
    assert number(None) == Number("–", "")
