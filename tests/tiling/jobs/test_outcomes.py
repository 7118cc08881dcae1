"""What an output folder says of how slides ended."""

import json
from pathlib import Path

import pytest

from tiling.jobs.locks import begin_run
from tiling.jobs.outcomes import Outcome, without_folders, write_outcomes


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("/data/Jane Doe/a.svs: no such file", "a.svs: no such file"),
        ("/a.svs: 896 × 896 µm/px, expected less", "a.svs: 896 × 896 µm/px, expected less"),
        ("[Errno 2] No such file: '/d/Jane Doe/a b.svs'", "[Errno 2] No such file: 'a b.svs'"),
        ('[Errno 2] "/d/O\'Brien/a.svs"', '[Errno 2] "a.svs"'),
        ("/d/O'Brien/a.svs: damaged; see /d/O'Brien/b.svs", "a.svs: damaged; see b.svs"),
        ("/o/S1.zarr exists (mpp: found 1; wanted 2)", "S1.zarr exists (mpp: found 1; wanted 2)"),
        ("/o/Jane Doe/S 1.zarr/patches/c/0: cut short", "S 1.zarr/patches/c/0: cut short"),
        (r"C:\Users\Jane Doe\a.svs: damaged", "a.svs: damaged"),
        (r"\\server\Jane Doe\a.svs: damaged", "a.svs: damaged"),
        ("slides/Jane/a.svs: damaged", "a.svs: damaged"),
        ("/d/one/a.mrxs and /d/two/b.dat differ", "a.mrxs and b.dat differ"),
        ("no patch has 50% tissue", "no patch has 50% tissue"),
    ],
)
def test_a_reason_names_the_file_and_no_folder(reason, shown):
    assert without_folders(reason) == shown
    assert without_folders(shown) == shown


def test_a_known_folder_goes_whatever_its_name_holds():
    reason = "/d/Doe; Jane: 1960/a b.svs: damaged; see 'x y/a.json'"
    assert without_folders(reason, [Path("/d/Doe; Jane: 1960"), Path("x y")]) == "a b.svs: damaged; see 'a.json'"


def test_summary_and_failures_name_no_folder_and_the_outcomes_still_do(tmp_path):
    outcome = Outcome("a", "failed", "/d/Doe; J/a.svs: damaged")
    write_outcomes([outcome], tmp_path / "s.json", tmp_path / "f.csv", {"a": [Path("/d/Doe; J")]})
    assert json.loads((tmp_path / "s.json").read_text())["slides"]["a"]["reason"] == "a.svs: damaged"
    assert (tmp_path / "f.csv").read_text() == "slide_id,reason\na,a.svs: damaged\n"
    assert outcome.reason == "/d/Doe; J/a.svs: damaged"


def test_what_a_killed_job_left_of_its_summary_is_cleared(tmp_path):
    names = "summary.json", "failures.csv"
    left = [tmp_path / f".{name}.tmp-1-ab" for name in names]
    for path in left:
        path.touch()
    begin_run()
    write_outcomes([Outcome("a", "failed", "why")], *(tmp_path / name for name in names), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
