"""The page over all slides of an output folder."""

import json
from dataclasses import replace
from html.parser import HTMLParser

from drawn_slides import GRID, attention, drawn_of
from PIL import Image

from mil.maps.forms import png
from mil.maps.index import write_index
from mil.maps.scores import title

HOSTILE = "<script>hacked = 1</script>"


class Links(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.links, self.scripts = [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        self.links += [dict(attrs)["href"]] if tag == "a" else []


def test_each_slide_links_to_its_own_files(tmp_path):
    write_index(tmp_path)
    assert not list(tmp_path.iterdir())
    for slide_id in ("a", "a.b"):
        slide = replace(attention(GRID, range(1, len(GRID) + 1)), slide_id=slide_id, label=HOSTILE)
        drawn = drawn_of(slide, provenance={"title": title(slide), "score is": "attention"})
        png.write(tmp_path / f"{slide_id}.png", drawn)
        png.write(tmp_path / f"{slide_id}.gallery.png", drawn)
    (tmp_path / "a.html").write_text("a page")
    (tmp_path / "a.b.csv").write_text("a table")
    Image.new("RGB", (3, 3)).save(tmp_path / "lesions.png")  # is no slide's
    area = {"value": 0.5, "low": 0.1, "high": 0.9}
    (tmp_path / "a.faithfulness.json").write_text(json.dumps({"area": area}))
    measured = {"lesions": 3, "slides": 2, "patch_auroc": {"value": 0.9, "low": None, "high": None}}
    (tmp_path / "lesions.json").write_text(json.dumps({**measured, "froc_score": 0.5, "dice": 0.25}))
    write_index(tmp_path)
    text = (tmp_path / "index.html").read_text()
    found = Links(text)
    assert found.scripts == 0 and text.count("&lt;script&gt;hacked = 1") == 2 and "Heatmaps of 2 slides" in text
    of_a, of_ab = ["a.html", "a.gallery.png", "a.html", "a.png"], ["a.b.png", "a.b.csv", "a.b.gallery.png", "a.b.png"]
    assert found.links == ["lesions.png", *of_ab, *of_a]
    assert "Faithfulness +0.50 (+0.10 to +0.90; 0 is chance): the decision follows the score." in text
    assert "3 lesions in 2 slides: patch AUROC 0.90, " in text and "best Dice 0.25." in text
