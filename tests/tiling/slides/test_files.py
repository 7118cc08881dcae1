import os

from tiling.slides.files import slide_fingerprint


def test_a_fingerprint_sees_any_sampled_byte_and_the_size(tmp_path):
    path = tmp_path / "x.svs"
    content = bytearray(os.urandom(3 << 20))
    path.write_bytes(content)
    first = slide_fingerprint(path)
    assert first == slide_fingerprint(path)
    for place in (0, 1 << 20, len(content) - 1):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        assert slide_fingerprint(path) != first
    path.write_bytes(content + b"x")
    assert slide_fingerprint(path) != first
    (tmp_path / "y.svs").write_bytes(content)
    assert slide_fingerprint(tmp_path / "y.svs") == first  # the name does not matter


def test_a_fingerprint_counts_every_file_of_a_dicom_folder(tmp_path):
    for name in ("a.dcm", "b.dcm"):
        (tmp_path / name).write_bytes(name.encode())
    first = slide_fingerprint(tmp_path)
    (tmp_path / "b.dcm").write_bytes(b"other")
    assert slide_fingerprint(tmp_path) != first
