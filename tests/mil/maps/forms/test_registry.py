"""What every registered form promises, whatever it looks like."""

from dataclasses import replace

import numpy as np
import pytest
from drawn_slides import GRID, attention, drawn_of

from mil.maps.forms.registry import FORMS, load_form
from mil.maps.scores import title
from mil.tasks.classification import Classification
from tiling.jobs.provenance import differences

EVERY = len(GRID)
HOSTILE = """</script><script>x = 'a'&quot;"</script>"""


@pytest.fixture(params=FORMS)
def form(request):
    return load_form(request.param)


def drawn(count=EVERY, name="tumour", values=None):
    """The first `count` patches of GRID; the positive class has this name."""
    values = np.arange(1.0, count + 1) if values is None else values
    slide = replace(attention(GRID[:count], values), task=Classification(("normal", name), 1), label=name)
    return drawn_of(slide, "logit", provenance={"title": title(slide), "scores": values.tolist()})


def test_its_four_names(form):
    assert form.ENDING.startswith(".") and len(form.HELP) > 10
    assert len({load_form(name).ENDING for name in FORMS}) == len(FORMS)


def test_it_is_whole_and_the_same_bytes_again(form, tmp_path):
    for name in ("a", "b"):
        form.write(tmp_path / f"{name}{form.ENDING}", drawn())
    a, b = (tmp_path / f"{name}{form.ENDING}" for name in ("a", "b"))
    assert a.read_bytes() == b.read_bytes() and len(list(tmp_path.iterdir())) == 2


def test_half_of_it_never_has_its_name(form, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError("no room")

    monkeypatch.setattr("tiling.jobs.atomic.os.replace", full)
    with pytest.raises(OSError, match="no room"):
        form.write(tmp_path / f"a{form.ENDING}", drawn())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["tumour", HOSTILE])
@pytest.mark.parametrize("count", [1, EVERY])
def test_it_says_what_it_was_made_from(form, tmp_path, count, name):
    path, wanted = tmp_path / f"a{form.ENDING}", drawn(count, name)
    form.write(path, wanted)
    assert form.read_provenance(path, wanted) == wanted.provenance
    others = drawn(count, name, np.arange(count) + 2.0)
    assert differences(form.read_provenance(path, others), others.provenance)


def test_what_is_no_such_file_is_not_taken_for_one(form, tmp_path):
    path = tmp_path / f"a{form.ENDING}"
    path.write_bytes(b"something else")
    try:
        found = form.read_provenance(path, drawn())
    except (OSError, ValueError, AttributeError):  # what export_heatmaps takes for a file that cannot be read
        return
    assert differences(found, drawn().provenance)
