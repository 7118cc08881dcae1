import pytest

from tiling.jobs.errors import SlideError
from tiling.jobs.provenance import check_format, differences, require_same


def test_unknown_formats_are_refused_by_name(tmp_path):
    check_format({"format": "f", "version": 1}, "f", 1, tmp_path)
    with pytest.raises(SlideError, match=r"f version 2, this program reads version 1"):
        check_format({"format": "f", "version": 2}, "f", 1, tmp_path)
    with pytest.raises(SlideError, match="format is None, expected 'f'"):
        check_format({}, "f", 1, tmp_path)


def test_differences_name_both_values(tmp_path):
    assert differences({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}) == [
        "b: found 2, wanted 3",
        "c: found None, wanted 4",
    ]
    require_same({"a": 1}, {"a": 1}, tmp_path)
    with pytest.raises(SlideError, match=r"a: found 1, wanted 2.*--overwrite"):
        require_same({"a": 1}, {"a": 2}, tmp_path)
