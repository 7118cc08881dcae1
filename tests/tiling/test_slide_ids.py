"""Ids of slides become names of files on every system, cells of spreadsheets and parts of addresses."""

import unicodedata

import pytest

from tiling.jobs.errors import RequestError
from tiling.jobs.locks import lock
from tiling.manifest import load_slides, load_table
from tiling.slide_ids import MOST_BYTES, fault_of, in_one_form

GOOD = [
    "S21-1234 A1 (2)",
    "b.2_x",
    "[a] {b} #1 %41 50% & ~x + y; z, 'q' $1$ !@^=`",
    "Präparat é ß",
    "標本 β",
    "é" * (MOST_BYTES // 2),
    "console",
    "nul1",
]


@pytest.mark.parametrize("name", GOOD)
def test_what_every_system_can_store_is_an_id(name):
    assert fault_of(name) == ""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "is empty"),
        *((f"a{character}b", f"has {character!r}, which") for character in '/\\:*?"<>|'),
        ("a\tb", "cannot be printed (U+0009)"),
        ("a\u00a0b", "cannot be printed (U+00A0)"),
        ("a\u202eb\u200b", "cannot be printed (U+200B U+202E)"),
        ("a\udce4", "cannot be printed (U+DCE4)"),
        ("a\x00", "cannot be printed (U+0000)"),
        *((name, "starts or ends with a space or a dot") for name in (" a", "a ", ".a", "a.", ".", "..", "...")),
        *((name, "is a device on Windows") for name in ("CON", "nul", "Com1", "LPT9.old", "aux .x", "COM¹", "CONIN$")),
        *((f"{first}1", "spreadsheet") for first in "=+-@＝"),
        ("é" * (MOST_BYTES // 2) + "x", f"is {MOST_BYTES + 1} bytes long, {MOST_BYTES} are the most"),
    ],
)
def test_what_some_system_cannot_store_is_refused_and_named(name, said):
    assert said in fault_of(name)


def test_the_longest_id_leaves_room_for_the_names_that_are_made_of_it(tmp_path):
    """A folder's lock that changes hands has the longest name."""
    path = tmp_path / f"{'x' * MOST_BYTES}.faithfulness.json"
    stale = path.with_name(f"{path.name}.lock")
    stale.write_text("")
    with lock(path):
        assert stale.read_text()
    assert len(f".{stale.name}.tmp-4194304-01234567") <= 255


def test_a_lock_clears_what_its_own_slide_left_and_no_other(tmp_path):
    """Brackets in a name are no pattern."""
    for name in (".[a1].zarr.tmp-1-1", ".a.zarr.tmp-1-1", ".1.zarr.tmp-1-1"):
        (tmp_path / name).write_text("")
    with lock(tmp_path / "[a1].zarr"):
        assert {path.name for path in tmp_path.glob(".*")} == {".a.zarr.tmp-1-1", ".1.zarr.tmp-1-1"}


def test_a_folder_of_slides_with_spaces_and_umlauts_needs_no_table(tmp_path):
    for name in ("S21-1234 A1 (2).svs", unicodedata.normalize("NFD", "Präparat.svs")):
        (tmp_path / name).write_bytes(b"x")
    rows = load_slides(tmp_path)
    assert [row.slide_id for row in rows] == ["Präparat", "S21-1234 A1 (2)"] == [row.patient_id for row in rows]
    assert all(row.path.exists() for row in rows)  # the id is in one form, the path is the file's own
    (tmp_path / "nul.svs").write_bytes(b"x")
    with pytest.raises(RequestError, match=r"nul\.svs: slide_id 'nul' is a device on Windows.*slide table"):
        load_slides(tmp_path)


def test_ids_that_are_one_file_on_some_system_are_refused(tmp_path):
    table = tmp_path / "slides.csv"
    table.write_text(f"slide_id,y\nS1,1\ns1,1\nÄ,1\n{unicodedata.normalize('NFD', 'Ä')},1\nother,1\n")
    with pytest.raises(RequestError) as error:
        load_table(table, needs_path=False)
    assert str(error.value).splitlines()[1:] == [
        "  slide_id 'Ä' is used by row 4, row 5",
        "  slide_id 'S1' (row 2) and 's1' (row 3) are one file where case does not count; rename one",
    ]
    assert in_one_form(unicodedata.normalize("NFD", "Ä")) == "Ä"


def test_a_patient_in_two_forms_of_unicode_is_asked_about(tmp_path):
    table = tmp_path / "slides.csv"
    table.write_text(f"slide_id,patient_id\na,é\nb,{unicodedata.normalize('NFD', 'é')}\n")
    with pytest.raises(RequestError, match="are they one patient"):
        load_table(table, needs_path=False)


def test_a_cell_with_a_comma_and_quotes_is_one_id(tmp_path):
    table = tmp_path / "slides.csv"
    table.write_text("slide_id,y\n\"a, 'b'\",1\n")
    assert [row.slide_id for row in load_table(table, needs_path=False)] == ["a, 'b'"]
