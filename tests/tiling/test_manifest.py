from pathlib import Path

import pandas as pd
import pytest

from tiling.jobs.errors import RequestError
from tiling.manifest import load_slides, load_table, select_part


@pytest.fixture
def folder(tmp_path):
    for name in ("a.svs", "b.tiff"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def table(folder, text, **how):
    path = folder / "slides.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_table(path, **{"needs_path": True, **how})


def faults(folder, text, **how):
    with pytest.raises(RequestError) as error:
        table(folder, text, **how)
    return str(error.value)


def test_values_and_defaults(folder):
    a, b = table(
        folder, "slide_id,path,patient_id,site,split,mpp,grade\nA,a.svs,P1,x,train,0.25,high\n,b.tiff,P2,,,,low\n"
    )
    assert (a.slide_id, a.path, a.patient_id, a.site, a.split, a.mpp) == (
        "A",
        folder / "a.svs",
        "P1",
        "x",
        "train",
        0.25,
    )
    assert a.labels == {"grade": "high"}
    assert (b.slide_id, b.patient_id, b.mpp, b.labels) == ("b", "P2", None, {"grade": "low"})


def test_byte_order_mark_and_white_space_do_not_matter(folder):
    (row,) = table(folder, b"\xef\xbb\xbf slide_id , path\r\n s1 , a.svs \r\n\r\n")
    assert (row.slide_id, row.path) == ("s1", folder / "a.svs")


def test_every_fault_is_reported_at_once_with_its_row(folder):
    text = "slide_id,path,mpp,split,y\ns1,a.svs,0.5,train,1\ns1,none.svs,900,dev,\nbad?id,b.tiff,half,,1\n"
    said = faults(folder, text, target="y")
    assert "slide_id 's1' is used by row 2, row 3" in said
    assert "row 3: no such file" in said and "none.svs" in said
    assert "row 3: mpp is 900" in said
    assert "row 3: split is 'dev'" in said
    assert "row 3: label 'y' is empty" in said
    assert "row 4: mpp is 'half'" in said
    assert "row 4: slide_id 'bad?id'" in said
    assert "7 faults\n" in said


def test_missing_columns_are_named_with_what_there_is(folder):
    assert "no column 'path'; found 'slide_id', 'y'" in faults(folder, "slide_id,y\ns,1\n")
    said = faults(folder, "slide_id,path,grade\ns,a.svs,1\n", target="stage")
    assert "no label column 'stage'; the label columns are 'grade'" in said
    assert "no rows" in faults(folder, "slide_id,path\n")
    assert "found an empty file" in faults(folder, "")
    assert "column 'y' appears 2 times" in faults(folder, "path,y,y\na.svs,1,2\n")


def test_labels_alone_need_no_path(folder):
    (row,) = table(folder, "slide_id,y\ns,1\n", needs_path=False, target="y")
    assert row.path is None and row.labels == {"y": "1"}


def test_a_folder_a_file_and_a_glob_stand_for_a_table(folder):
    (folder / "series").mkdir()
    for name in ("1.dcm", "2.dcm"):
        (folder / "series" / name).write_bytes(b"x")
    (folder / "notes.txt").write_text("not a slide")
    assert [r.slide_id for r in load_slides(str(folder))] == ["a", "b", "series"]
    assert [r.slide_id for r in load_slides(str(folder / "a.svs"))] == ["a"]
    assert [r.slide_id for r in load_slides(str(folder / "*.tiff"))] == ["b"]


def test_nothing_to_do_is_said(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(RequestError, match="no slide in this folder"):
        load_slides(str(tmp_path))
    with pytest.raises(RequestError, match="no such file, folder or slide table"):
        load_slides(str(tmp_path / "nowhere"))
    with pytest.raises(RequestError, match="no such slide table"):
        load_slides(str(tmp_path / "nowhere.csv"))
    with pytest.raises(RequestError, match="cannot be read as a slide table: Is a directory"):
        load_table(tmp_path, needs_path=False)


def test_two_slides_of_one_name_are_refused(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "a.svs").write_bytes(b"x")
    with pytest.raises(RequestError, match="slide_id 'a' is used by"):
        load_slides(str(folder))


def test_parts_cover_all_rows_once(folder):
    rows = load_slides(str(folder))
    parts = [r for i in (1, 2, 3) for r in select_part(rows, f"{i}/3")]
    assert sorted(r.slide_id for r in parts) == [r.slide_id for r in rows]
    for wrong in ("0/3", "4/3", "x", "1"):
        with pytest.raises(RequestError, match="expected i/n"):
            select_part(rows, wrong)


@pytest.mark.parametrize("column", ["Patient_ID", "patientid", "Patient Id", "patient-id"])
def test_a_column_that_is_almost_patient_id_is_refused(folder, column):
    said = faults(folder, f"slide_id,path,{column}\ns1,a.svs,P1\n")
    assert f"column {column!r} looks like 'patient_id'" in said


def test_patients_that_would_be_split_are_refused(folder):
    said = faults(folder, "slide_id,path,patient_id\ns1,a.svs,P1\ns2,b.tiff,p1\ns3,a.svs,\n")
    assert "row 4: patient_id is empty" in said and "written 'P1' and 'p1'" in said
    rows = table(folder, "slide_id,path,patient_id\ns1,a.svs,\ns2,b.tiff,\n")
    assert [r.patient_id for r in rows] == ["s1", "s2"]


def test_semicolons_get_their_remedy(folder):
    assert "save the table as CSV with commas" in faults(folder, "slide_id;path\ns1;a.svs\n")


def test_a_mask_is_a_file_beside_the_table_that_must_be_there(folder):
    (folder / "masks").mkdir()
    (folder / "masks" / "a.png").write_bytes(b"x")
    a, b = table(folder, "path,mask\na.svs,masks/a.png\nb.tiff,\n")
    assert (a.mask, b.mask, a.labels) == (folder / "masks/a.png", None, {})
    assert "row 2: no such mask file: " in faults(folder, "path,mask\na.svs,masks/b.png\n")
    (row,) = table(folder, "path,mask\na.svs,masks/b.png\n", needs_path=False)
    assert row.mask == folder / "masks/b.png"
    assert "column 'Mask' looks like 'mask'" in faults(folder, "path,Mask\na.svs,masks/a.png\n")


GOLDEN = Path(__file__).parents[1] / "golden" / "slides-v1.csv"


def test_the_golden_table_is_read_for_ever():
    a, b = load_table(GOLDEN, needs_path=False, target="diagnosis")
    assert (a.slide_id, a.patient_id, a.site, a.split, a.mpp) == ("S1", "P1", "north", "train", 0.2528)
    assert a.path == GOLDEN.parent / "slides/a.svs" and a.annotation == GOLDEN.parent / "a.geojson"
    assert a.labels == {"diagnosis": "tumour", "grade": "3"}
    assert (b.slide_id, b.patient_id, b.mpp, b.annotation) == ("b.2", "P2", None, None)


def test_another_version_is_refused_by_name(folder):
    said = faults(folder, "slide_id,path,format_version\ns1,a.svs,2\n")
    assert "format_version is '2', this program reads slide tables of version 1" in said


def test_images_of_a_folder_are_slides_only_where_there_is_no_slide(tmp_path):
    for name in ("a.jpg", "sub/b.PNG", ".hidden.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert [r.slide_id for r in load_slides(str(tmp_path))] == ["a", "b"]
    (tmp_path / "c.svs").write_bytes(b"x")
    assert [r.slide_id for r in load_slides(str(tmp_path))] == ["c"]


def test_a_data_frame_is_read_as_the_file_it_would_be(folder, monkeypatch):
    monkeypatch.chdir(folder)
    text = "slide_id,path,patient_id,mpp,grade\n1,a.svs,7,,2\n,b.tiff,8,0.5,\n"
    (folder / "slides.csv").write_text(text)
    frame = pd.read_csv(folder / "slides.csv")
    assert load_table(frame, needs_path=True) == load_slides("slides.csv") == load_slides(frame)
    frame = frame.astype(object)
    frame.loc[2] = ["x/y", "gone.svs", None, 900, "1"]
    with pytest.raises(RequestError) as error:
        load_table(frame, needs_path=True, target="grade")
    assert str(error.value).splitlines() == [
        "slide table: 5 faults",
        "  row 3: label 'grade' is empty; fill it in or leave the row out",
        f"  row 4: no such file: {folder / 'gone.svs'}",
        "  row 4: mpp is 900, expected 0.05 to 20.0 µm per pixel",
        "  row 4: patient_id is empty; fill it in all rows or leave the column out",
        "  row 4: slide_id 'x/y' has '/', which not every file system allows; give another in a slide table",
    ]
