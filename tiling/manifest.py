"""CONTRACT slide table: a CSV file, one row a slide.

Columns
  slide_id    unique, a file's name on every system, see tiling.slide_ids; default: the file's stem, of a URL without
              its query
  path        the slide file, or the folder of one DICOM series or of an OME-Zarr image; relative paths start at the
              table's folder. Or a URL of either (s3://, gs://, az://, https://), which tile-slides --stage reads
  patient_id  default: slide_id. All slides of a patient are kept on one side of every split
  site        optional: hospital or scanner
  split       optional: train, val or test
  mpp         optional: µm per level-0 pixel; overrides what the file says (0.05 to 20)
  annotation  optional: GeoJSON file of regions in level-0 pixels, drawn as outlines on heatmaps
  mask        optional: what is tissue, instead of finding it: GeoJSON polygons in level-0 pixels, or a PNG of the
              whole slide in which everything but 0 is tissue
  format_version  optional: 1. Any other version is refused; a table without the column is version 1
  any other   a label, chosen with --target, of which several are parted by commas

A column whose name differs from these in case or spacing only is refused, and so is a `patient_id` that is filled
in some rows only or differs in case only: both would split a patient.

A folder, a single file or a glob stands for a table with only path and slide_id; JPEG and PNG images of a folder
count as slides only where it holds no slide file, since scanners put previews beside their slides. In Python a data
frame with these columns is a table, too. UTF-8, with or without a byte-order mark; white space around values is
dropped. A table that breaks a rule MUST be refused before any work starts, with all its faults at once and their row
numbers (the header is row 1).
"""

import csv
import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from tiling.jobs.errors import RequestError
from tiling.slide_ids import caseless, fault_of, in_one_form
from tiling.slides.files import is_ome_zarr, is_zarr, slide_files
from tiling.slides.slide import MPP_MAX, MPP_MIN
from tiling.slides.urls import is_url, shown, url_name

if TYPE_CHECKING:
    import pandas as pd

VERSION = "1"
SPLITS = ("train", "val", "test")
_RESERVED = ("slide_id", "path", "patient_id", "site", "split", "mpp", "annotation", "mask", "format_version")
_SUFFIXES = frozenset(
    {".svs", ".tif", ".tiff", ".ndpi", ".scn", ".mrxs", ".bif", ".vms", ".vmu", ".svslide", ".dcm", ".btf", ".tf8"}
    | {".czi", ".vsi", ".isyntax", ".i2syntax"}  # the last three are not read: each fails and says what to do
)
_IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
_SHOWN_FAULTS = 20


@dataclass(frozen=True)
class SlideRow:
    """One slide of the table, a file or what a URL names. `labels` holds the columns without a meaning of their own."""

    slide_id: str
    path: Path | None = None
    url: str = field(default="", repr=False)  # may carry a signature, and is stored nowhere
    remote_version: str = ""  # of what the URL names, where it was asked, see tiling.slides.remote; from no table
    patient_id: str = ""
    site: str = ""
    split: str = ""
    mpp: float | None = None
    annotation: Path | None = None
    mask: Path | None = None
    corner_l0: tuple[int, int] | None = None  # of a patch on the grid that is wanted, from no table
    labels: dict[str, str] = field(default_factory=dict)
    number: int = field(default=0, compare=False)  # of the row in its table, whose header is row 1; 0: of no table


def load_slides(source: "str | Path | pd.DataFrame", *, urls: bool = False) -> list[SlideRow]:
    """Slides named by `source`: a table (.csv or data frame), a folder, a slide or a glob. Raises RequestError.

    urls: slides may lie elsewhere; otherwise a URL is refused.
    """
    if not isinstance(source, (str, Path)):
        return load_table(source, needs_path=True, urls=urls)
    if is_url(str(source)):
        raise RequestError(f"{shown(str(source))}: URLs are read from the column 'path' of a slide table; write one")
    path = Path(source)
    if path.suffix.lower() == ".csv":
        return load_table(path, needs_path=True, urls=urls)
    if is_ome_zarr(path):
        found = [path]
    elif path.is_dir():
        found = _slides_in(path)
        if not found:
            raise RequestError(
                f"{path}: no slide in this folder (looked for {' '.join(sorted(_SUFFIXES | _IMAGE_SUFFIXES))} "
                "and OME-Zarr folders, also in subfolders)"
            )
    elif path.is_file():
        found = [path]
    else:
        matching = [Path(p) for p in glob.glob(str(source), recursive=True)]
        found = sorted(p for p in matching if p.is_file() or is_ome_zarr(p))
        if not found:
            raise RequestError(f"{source}: no such file, folder or slide table, and no file matches it as a glob")
    rows = [SlideRow(slide_id=in_one_form(_default_id(p)), path=p.absolute()) for p in found]
    rows = [_with_defaults(r) for r in rows]
    raise_faults(source, _id_faults([(str(r.path), r.slide_id) for r in rows]))
    return rows


def load_table(
    table: "Path | pd.DataFrame",
    *,
    needs_path: bool,
    target: str | None = None,
    urls: bool = False,
    empty_labels: bool = False,
) -> list[SlideRow]:
    """Read a slide table (rows in its order). Raises RequestError with every fault and its row number.

    table: a CSV file, or a data frame with its columns: row numbers as if it were written to a file, and relative
        paths start at the working folder.
    needs_path: the slides themselves will be opened, so each row needs a path that exists.
    urls: or a URL, which is not asked yet whether it names anything.
    target: the label column, or several parted by commas; they must exist, and each row must fill one of them, unless
        there may be empty_labels.
    """
    targets = target_columns(target or "")
    if isinstance(table, Path):
        name, folder, (header, records) = str(table), table.parent, _read_csv(table)
    else:
        name, folder, (header, records) = "slide table", Path(), _read_frame(table)
    faults = _header_faults(header, needs_path, targets)
    raise_faults(name, faults)
    rows = []
    for number, record in records:
        row, row_faults = _parse_row(record, folder, () if empty_labels else targets)
        row_faults = (_path_faults(row, urls) if needs_path else []) + row_faults
        faults += [f"row {number}: {fault}" for fault in row_faults]
        rows.append(replace(row, number=number))
    faults += _patient_faults(header, records)
    faults += _id_faults([(f"row {n}", r.slide_id) for (n, _), r in zip(records, rows, strict=True)])
    if not rows:
        faults.append("the table has a header and no rows")
    raise_faults(name, faults)
    return rows


def target_columns(target: str) -> tuple[str, ...]:
    """The columns that a target names, parted by commas."""
    return tuple(filter(None, (name.strip() for name in target.split(","))))


def select_part(rows: Sequence[SlideRow], part: str) -> list[SlideRow]:
    """Every n-th row from the i-th on, for `--part i/n` of an array job (i from 1 to n)."""
    match = re.fullmatch(r"(\d+)/(\d+)", part)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise RequestError(f"--part {part}: expected i/n with 1 <= i <= n, for example 3/8")
    return list(rows[int(match[1]) - 1 :: int(match[2])])


def _default_id(path: Path) -> str:
    return path.name if path.is_dir() and path.suffix.lower() != ".zarr" else path.stem


def _slides_in(folder: Path) -> list[Path]:
    """Slide files and OME-Zarr folders below `folder`, or images.

    The .dcm files of one folder are one slide, named by the folder. Other zarr folders, such as patch stores, are not
    looked into.
    """
    files: list[Path] = []
    slides: set[Path] = set()
    for place, folders, names in os.walk(folder):
        here = Path(place)
        stores = [name for name in folders if is_zarr(here / name)]
        slides |= {here / name for name in stores if is_ome_zarr(here / name)}
        folders[:] = [name for name in folders if name not in stores]
        files += [here / name for name in names if not name.startswith(".") and (here / name).is_file()]
    slides |= {p.parent if p.suffix.lower() == ".dcm" else p for p in files if p.suffix.lower() in _SUFFIXES}
    return sorted(slides or {p for p in files if p.suffix.lower() in _IMAGE_SUFFIXES})


def _read_csv(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RequestError(f"{path}: no such slide table") from None
    except OSError as error:
        raise RequestError(f"{path}: cannot be read as a slide table: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: not a UTF-8 text file ({error}); save the table as CSV UTF-8") from None
    lines = csv.reader(text.splitlines())
    header = [name.strip() for name in next(lines, [])]
    records = []
    for cells in lines:
        if any(cell.strip() for cell in cells):
            values = [cell.strip() for cell in cells] + [""] * (len(header) - len(cells))
            records.append((lines.line_num, dict(zip(header, values, strict=False))))
    return header, records


def _read_frame(frame: "pd.DataFrame") -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The same from a data frame, in which NaN is an empty cell and makes its column's whole numbers fractions."""
    header = [str(name).strip() for name in frame.columns]
    rows = ([_as_text(cell) for cell in cells] for cells in frame.itertuples(index=False, name=None))
    records = [(number, dict(zip(header, cells, strict=True))) for number, cells in enumerate(rows, 2)]
    return header, [(number, record) for number, record in records if any(record.values())]


def _as_text(cell: Any) -> str:
    if cell is None or cell != cell or str(cell) == "<NA>":
        return ""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell).strip()


def _header_faults(header: list[str], needs_path: bool, targets: Sequence[str]) -> list[str]:
    faults = [f"column {name!r} appears {n} times" for name, n in Counter(header).items() if n > 1]
    faults += [
        f"column {name!r} looks like {meant!r}, which is written exactly so; rename it"
        for name in header
        for meant in _RESERVED
        if name != meant and re.sub(r"[ _-]", "", name.lower()) == meant.replace("_", "")
    ]
    if len(header) == 1 and re.search(r"[;\t]", header[0]):
        faults.append(f"the columns are not separated by commas: {header[0]!r}; save the table as CSV with commas")
    if needs_path and "path" not in header:
        faults.append(f"no column 'path'; found {', '.join(map(repr, header)) or 'an empty file'}")
    if not needs_path and "slide_id" not in header and "path" not in header:
        faults.append(f"no column 'slide_id'; found {', '.join(map(repr, header)) or 'an empty file'}")
    labels = [name for name in header if name not in _RESERVED]
    faults += [
        f"no label column {name!r}; the label columns are {', '.join(map(repr, labels)) or 'none'}"
        for name in dict.fromkeys(targets)
        if name not in labels
    ]
    return faults + [f"--target names {name!r} {n} times" for name, n in Counter(targets).items() if n > 1]


def _parse_row(record: dict[str, str], folder: Path, targets: Sequence[str]) -> tuple[SlideRow, list[str]]:
    faults = []
    place = record.get("path", "")
    url = place if is_url(place) else ""
    path = (folder / place).absolute() if place and not url else None
    split = record.get("split", "")
    if split and split not in SPLITS:
        faults.append(f"split is {split!r}, expected one of {', '.join(SPLITS)}")
    version = record.get("format_version", VERSION)
    if version != VERSION:
        faults.append(f"format_version is {version!r}, this program reads slide tables of version {VERSION}")
    mpp, mpp_fault = _parse_mpp(record.get("mpp", ""))
    if targets and not any(record[name] for name in targets):
        names = ", ".join(map(repr, targets))
        several = f"labels {names} are all empty; fill one" if len(targets) > 1 else f"label {names} is empty; fill it"
        faults.append(f"{several} in or leave the row out")
    files = {name: (folder / record[name]).absolute() for name in ("annotation", "mask") if record.get(name)}
    row = SlideRow(
        slide_id=in_one_form(record.get("slide_id") or PurePosixPath(url_name(url) if url else place).stem),
        path=path,
        url=url,
        patient_id=record.get("patient_id", ""),
        site=record.get("site", ""),
        split=split,
        mpp=mpp,
        annotation=files.get("annotation"),
        mask=files.get("mask"),
        labels={k: v for k, v in record.items() if k not in _RESERVED},
    )
    return _with_defaults(row), faults + mpp_fault


def _path_faults(row: SlideRow, urls: bool) -> list[str]:
    """Of a row whose slide will be opened."""
    faults = []
    if row.url and not urls:
        faults.append(f"{shown(row.url)} is a URL, which tile-slides alone reads; copy the slide and give its path")
    elif not row.url and row.path is None:
        faults.append("path is empty")
    elif row.path is not None and not row.path.exists():
        faults.append(f"no such file: {row.path}")
    files = {"annotation": row.annotation, "mask": row.mask}
    return faults + [f"no such {name} file: {file}" for name, file in files.items() if file and not file.is_file()]


def _parse_mpp(text: str) -> tuple[float | None, list[str]]:
    if not text:
        return None, []
    try:
        mpp = float(text)
    except ValueError:
        return None, [f"mpp is {text!r}, expected a number of µm per pixel"]
    if not MPP_MIN <= mpp <= MPP_MAX:
        return None, [f"mpp is {text}, expected {MPP_MIN} to {MPP_MAX} µm per pixel"]
    return mpp, []


def _with_defaults(row: SlideRow) -> SlideRow:
    return row if row.patient_id else SlideRow(**{**vars(row), "patient_id": row.slide_id})


def _patient_faults(header: list[str], records: list[tuple[int, dict[str, str]]]) -> list[str]:
    """A patient who is taken for two would stand on both sides of a split."""
    if "patient_id" not in header:
        return []
    ids = [(number, record["patient_id"]) for number, record in records]
    faults = [
        f"row {number}: patient_id is empty; fill it in all rows or leave the column out" for number, p in ids if not p
    ]
    if len(faults) == len(ids):
        return []
    spellings: dict[str, set[str]] = {}
    for _, name in ids:
        spellings.setdefault(caseless(name), set()).add(name)
    several = [sorted(s) for s in spellings.values() if len(s) > 1]
    return faults + [f"patient_id is written {' and '.join(map(repr, s))}; are they one patient?" for s in several]


def _id_faults(named: list[tuple[str, str]]) -> list[str]:
    """Faults of slide ids, each given with the place (row or file) that it comes from."""
    faults = [
        f"{place}: slide_id {name!r} {fault}; give another in a slide table"
        for place, name in named
        if (fault := fault_of(name))
    ]
    places: dict[str, dict[str, list[str]]] = {}
    for place, name in named:
        places.setdefault(caseless(name), {}).setdefault(name, []).append(place)
    faults += [
        f"slide_id {name!r} is used by {', '.join(used)}"
        for spellings in places.values()
        for name, used in spellings.items()
        if len(used) > 1
    ]
    return faults + [
        f"slide_id {' and '.join(f'{n!r} ({used[0]})' for n, used in spellings.items())} are one file where case does "
        "not count; rename one"
        for spellings in places.values()
        if len(spellings) > 1
    ]


def raise_faults(source: object, faults: list[str]) -> None:
    """RequestError with the first faults of a table, if there are any."""
    if faults:
        shown = "\n  ".join(faults[:_SHOWN_FAULTS])
        more = f"\n  … and {len(faults) - _SHOWN_FAULTS} more" if len(faults) > _SHOWN_FAULTS else ""
        raise RequestError(f"{source}: {len(faults)} fault{'s' * (len(faults) > 1)}\n  {shown}{more}")


def largest_first(rows: Sequence[SlideRow]) -> list[SlideRow]:
    """Rows by the size of their slide files, so that the last one to end is a small one; files that are gone last."""
    return sorted(rows, key=_bytes, reverse=True)


def _bytes(row: SlideRow) -> int:
    try:
        return sum(file.stat().st_size for file in slide_files(row.path)) if row.path else 0
    except OSError:
        return 0
