import json

import jinja2
import pytest
from markupsafe import Markup

from tiling.jobs import pages


@pytest.fixture
def template(monkeypatch):
    """template(text) -> what renders it with the settings of all pages."""

    def make(text):
        environment = pages.environment.__wrapped__("tiling.qc")
        environment.loader = jinja2.DictLoader({"page.html": text})
        monkeypatch.setattr(pages, "environment", lambda room: environment)
        return lambda **values: pages.render("tiling.qc", "page.html", **values)

    return make


def test_values_are_escaped_unless_they_are_markup_and_every_name_is_asked_for(template):
    page = template("<p>{{ text }}</p>")
    assert page(text="<b>&") == "<p>&lt;b&gt;&amp;</p>" and page(text=Markup("<b>")) == "<p><b></p>"
    with pytest.raises(jinja2.UndefinedError):
        page()


def test_data_for_a_script_is_compact_in_its_order_and_cannot_end_the_script(template):
    data = {"z": "</script>µ'", "a": [1, None]}
    text = template("{{ data | tojson }}")(data=data)
    assert json.loads(text) == data and "<" not in text and text.startswith('{"z":') and "µ" in text
