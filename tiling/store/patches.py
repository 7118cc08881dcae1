"""CONTRACT patch store `patches/<slide_id>.zarr`: a zarr v3 group that holds one slide's patches.

Arrays
  patches          (N, P, P, 3) uint8 RGB, chunk = one patch, 512 patches a shard. Codecs: `imagecodecs_jpeg`
                   or zstd (lossless), then `crc32c`. Absent with `--pixels reference`
  coords_l0        (N, 2) int64, (x, y) of the top-left corner in level-0 pixels, row by row
  tissue_fraction  (N,) float32, share of the patch that the tissue mask covers
  pen_fraction, dark_fraction, white_fraction
                   (N,) float32, share that is pen, black border or shadow, and empty glass
  padded_fraction  (N,) float32, share that lies beyond the slide and is filled with `padding_rgb`
  sharpness        (N,) float32, mean square of the Laplacian of the green channel, where the patch shows the slide
  tissue_mask      (H, W) uint8, 1 on tissue
  pen_mask         (H, W) uint8, 1 on pen
  thumbnail        (H, W, 3) uint8 RGB, same geometry as the masks
All but `patches` are zstd, then `crc32c`.

Attributes of the group: `format`, `version` and the fields of `PatchStoreInfo`, of which `remote_version` is there for
slides that a URL named alone. No label or macro image, no
path and no vendor property of the slide is ever stored: slide files carry patient data.

A patch covers the square of `patch_size_l0` level-0 pixels from its corner, which may lie left of the slide or above
it: coordinates may be negative and need not be multiples of anything. Mask and thumbnail pixels cover
`thumbnail_downsample` level-0 pixels. N = 0 is valid. The folder is written as a whole or not at all.

A reader MUST refuse a version that it does not know. Versions 1 and 2 are read: neither had `rules`, nobody knows
theirs, nor patches over the slide's edge (padded_fraction is 0), nor `tissue_covered` (NaN). Version 1 had no pen_mask,
no scores but tissue_fraction and sharpness (of luma), no `reduction` (1) and no `jpeg_subsampling` ("444"); scores it
lacks are NaN.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import simplejpeg
import zarr
from numcodecs.zstd import Zstd
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from tiling.grid.corners import covered_share
from tiling.jobs.atomic import atomic_folder
from tiling.jobs.errors import SlideError
from tiling.jobs.provenance import check_format, digest
from tiling.slides.slide import NO_SUBSAMPLING, Colour, Pixels
from tiling.store.jpeg_codec import JpegCodec
from tiling.store.shards import PATCHES_PER_SHARD, ShardReader, ShardWriter

if TYPE_CHECKING:
    from tiling.tissue.tissue import TissueMap  # loads scipy and scikit-image, which no reader needs

FORMAT, VERSION = "slidemil-patches", 3
MASK_SCORES = ("tissue_fraction", "pen_fraction", "dark_fraction", "white_fraction")
AREA_SCORES = (*MASK_SCORES, "padded_fraction")
SCORES = (*AREA_SCORES, "sharpness")
PICTURES = ("tissue_mask", "pen_mask", "thumbnail")
_NOT_IN_VERSION_2 = {"padded_fraction"}
_NOT_IN_VERSION_1 = {"pen_fraction", "dark_fraction", "white_fraction", "pen_mask", *_NOT_IN_VERSION_2}
NOT_IN_VERSION = {1: _NOT_IN_VERSION_1, 2: _NOT_IN_VERSION_2}
_OLD = (1, 2)  # versions that are still read
_ZSTD_LEVEL = 3


@dataclass(frozen=True)
class PatchStoreInfo:
    """What a store says of itself. Scales are NaN where the slide has none (null in the file)."""

    slide_id: str
    fingerprint: str  # of the slide file, see tiling.slides.files.slide_fingerprint
    width_l0: int
    height_l0: int
    mpp_l0: float  # µm per level-0 pixel
    mpp_source: str
    mpp_table: float  # µm per level-0 pixel from the slide table; NaN if it gave none
    mpp: float  # µm per patch pixel as obtained
    patch_size_px: int
    patch_size_l0: int
    overlap_px: int
    level: int  # the slide level that was read
    backend: str  # the reader that read it
    config: dict[str, Any]  # TilingConfig.content()
    packages: dict[str, str]
    reduction: int = 1  # each pixel that was read is the mean of reduction × reduction pixels of the level
    mask_sha256: str = ""  # of the user's own tissue mask; empty where the method found the tissue
    # The colours of patches are kept whole, unless the very pixels read were subsampled in the slide's own JPEG:
    # on H&E at quality 90, 4:2:0 costs up to 5 grey levels of mean error where 4:4:4 costs 1.7.
    jpeg_subsampling: str = NO_SUBSAMPLING
    thumbnail_downsample: float = math.nan  # level-0 pixels per thumbnail pixel
    rules: dict[str, int] = field(default_factory=dict)  # tiling.rules.RULES of the program that wrote it
    padding_rgb: Colour | None = None  # what fills patches beyond the slide: its glass; None where none goes there
    tissue_covered: float = math.nan  # share of the tissue's area that lies in patches; NaN without tissue
    remote_version: str = ""  # of what a URL named, see tiling.slides.remote; empty of a file, or where it has none

    def provenance(self) -> dict[str, Any]:
        """What must be equal for an existing store to be taken as done."""
        return provenance(self.fingerprint, self.mpp_table, self.mask_sha256, self.config, self.rules)


def provenance(
    fingerprint: str, mpp_table: float, mask_sha256: str, config: Mapping[str, Any], rules: Mapping[str, int]
) -> dict[str, Any]:
    """The same as PatchStoreInfo.provenance, of a store that may not be there yet."""
    mpp = None if math.isnan(mpp_table) else mpp_table
    mask = {"mask in the slide table": mask_sha256} if mask_sha256 else {}
    versions = {f"version of the {name} rules": version for name, version in rules.items()}
    return {"slide file": fingerprint, "mpp in the slide table": mpp, **mask, **config, **versions}


@dataclass(frozen=True)
class Candidates:
    """Patches of the grid that may be stored, M of them."""

    coords_l0: NDArray[np.int64]  # (M, 2) corners
    areas: Mapping[str, NDArray[np.float32]]  # AREA_SCORES, each (M,)


@dataclass(frozen=True)
class MadePatch:
    """A patch ready to be stored."""

    index: int  # its place among the candidates of the slide
    sharpness: float
    data: bytes  # as `encode` made it


def write_store(
    path: Path,
    info: PatchStoreInfo,
    candidates: Candidates,
    tissue: "TissueMap",
    thumbnail: Pixels,
    patches: Iterable[MadePatch],
) -> int:
    """Write a store atomically and return how many patches it holds.

    Stored are those candidates that `patches` yields, in their order.
    """
    with atomic_folder(path) as folder:
        writer = ShardWriter(folder / "patches")
        kept, sharpness = [], []
        for patch in patches:
            kept.append(patch.index)
            sharpness.append(patch.sharpness)
            if info.config["pixels"] != "reference":
                writer.append(patch.data)
        writer.close()
        # zarr writes several files at once and leaves those behind that fail together, on a full disk say; so it
        # writes to memory, and the files follow one by one.
        described: dict[str, Buffer] = {}
        group = zarr.create_group(MemoryStore(described))
        if info.config["pixels"] != "reference":
            _describe_patches(group, len(kept), info)
        index = np.array(kept, np.int64)
        info = replace(info, tissue_covered=_covered(info, tissue.tissue, candidates.coords_l0[index]))
        arrays: dict[str, NDArray[Any]] = {
            "coords_l0": candidates.coords_l0[index],
            **{name: candidates.areas[name][index] for name in AREA_SCORES},
            "sharpness": np.array(sharpness, np.float32),
            "tissue_mask": tissue.tissue.astype(np.uint8),
            "pen_mask": tissue.pen.astype(np.uint8),
            "thumbnail": thumbnail,
        }
        for name, values in arrays.items():
            chunks = tuple(max(1, n) for n in values.shape)
            # Zeros too are written, so that a chunk that is not there is known to be lost.
            group.create_array(
                name,
                data=values,
                chunks=chunks,
                compressors=[ZstdCodec(level=_ZSTD_LEVEL), Crc32cCodec()],
                config={"write_empty_chunks": True},
            )
        sha = hashlib.sha256(arrays["coords_l0"].astype("<i8").tobytes()).hexdigest()
        group.attrs.update(
            format=FORMAT, version=VERSION, digest=digest([info.provenance(), VERSION, sha]), **_to_json(info)
        )
        for key, content in described.items():
            (folder / key).parent.mkdir(parents=True, exist_ok=True)
            (folder / key).write_bytes(content.to_bytes())
        return len(kept)


def _covered(info: PatchStoreInfo, tissue: NDArray[np.bool_], coords_l0: NDArray[np.int64]) -> float:
    slide_l0 = info.width_l0, info.height_l0
    return covered_share(tissue, info.thumbnail_downsample, coords_l0, info.patch_size_l0, slide_l0)


def _describe_patches(group: zarr.Group, count: int, info: PatchStoreInfo) -> None:
    """The array `patches`, whose shards are there already."""
    side = info.patch_size_px
    if info.config["pixels"] == "jpeg":
        codecs: list[Any] = [JpegCodec(level=info.config["jpeg_quality"], subsampling=info.jpeg_subsampling)]
    else:
        codecs = [BytesCodec(), ZstdCodec(level=_ZSTD_LEVEL)]
    group.create_array(
        "patches",
        shape=(count, side, side, 3),
        dtype="uint8",
        chunks=(PATCHES_PER_SHARD, side, side, 3),
        filters=None,
        compressors=None,
        serializer=ShardingCodec(chunk_shape=(1, side, side, 3), codecs=[*codecs, Crc32cCodec()]),
    )


def encode(pixels: Pixels, info: PatchStoreInfo) -> bytes:
    """One patch (P, P, 3) as the store keeps it; empty where it keeps coordinates only. Thread-safe."""
    kind = info.config["pixels"]
    if kind == "jpeg":
        quality = info.config["jpeg_quality"]
        return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "RGB", info.jpeg_subsampling))
    return bytes(Zstd(level=_ZSTD_LEVEL).encode(np.ascontiguousarray(pixels))) if kind == "zstd" else b""


def _to_json(info: PatchStoreInfo) -> dict[str, Any]:
    said = {key: value for key, value in asdict(info).items() if key != "remote_version" or value}
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in said.items()}


@dataclass(frozen=True)
class StoreHead:
    """What a store says of itself, and how many patches it holds; read from two small files, without its arrays."""

    path: Path  # of the folder with the arrays
    info: PatchStoreInfo
    digest: str
    version: int
    patches: int

    def __len__(self) -> int:
        return self.patches


def read_head(path: Path) -> StoreHead:
    """Raises SlideError where the store is absent, of another version, or has no list of its patches."""
    try:
        attributes = json.loads((path / "zarr.json").read_text())["attributes"]
    except FileNotFoundError:
        raise SlideError(f"{path}: no patch store there; make it with tile-slides") from None
    except (ValueError, KeyError) as error:
        raise SlideError(f"{path}: damaged zarr.json ({error}); tile the slide again") from error
    check_format(attributes, FORMAT, VERSION, path, still_read=_OLD)
    if "stored_in" in attributes:  # copied from an object store, see tiling.store.objects
        return read_head(path / str(attributes["stored_in"]))
    try:
        count = int(json.loads((path / "coords_l0/zarr.json").read_text())["shape"][0])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise SlideError(f"{path}: array 'coords_l0' is missing or damaged ({error})") from error
    return head_of(path, attributes, count)


def head_of(path: Path, attributes: dict[str, Any], count: int) -> StoreHead:
    """What a store's attributes say, whose version was checked. Raises SlideError where one is missing."""
    return StoreHead(path, _from_json(attributes, path), attributes["digest"], attributes["version"], count)


class PatchStore:
    """A store opened for reading. Raises SlideError if it is absent, damaged or of another version."""

    def __init__(self, path: str | Path) -> None:
        head = read_head(Path(path))
        self.path, self.info, self.digest, self.version = head.path, head.info, head.digest, head.version
        self._group = zarr.open_group(self.path, mode="r")
        self.coords_l0: NDArray[np.int64] = self._load("coords_l0")
        self._shards = ShardReader(self.path / "patches")

    def __len__(self) -> int:
        return len(self.coords_l0)

    def require_current(self) -> None:
        """Raises SlideError where another store stands in its place by now: what was read may be of both."""
        try:
            now = PatchStore(self.path).digest
        except SlideError:
            now = ""
        if now != self.digest:
            raise SlideError(
                f"{self.path}: was tiled again, or taken away, while it was read; wait for tile-slides, then run the "
                "same command again"
            )

    @property
    def has_pixels(self) -> bool:
        """False with `--pixels reference`: then tiling.store.reference reads the slide."""
        return bool(self.info.config["pixels"] != "reference")

    @property
    def tissue_mask(self) -> NDArray[np.bool_]:
        """(H, W) bool."""
        return self._load("tissue_mask").astype(bool)

    @property
    def pen_mask(self) -> NDArray[np.bool_]:
        """(H, W) bool."""
        return self._load("pen_mask").astype(bool) if "pen_mask" in self._group else np.zeros_like(self.tissue_mask)

    @property
    def thumbnail(self) -> Pixels:
        """(H, W, 3) uint8 RGB."""
        return self._load("thumbnail")

    @property
    def scores(self) -> dict[str, NDArray[np.float32]]:
        """SCORES, each (N,) float32; NaN where a store of version 1 does not have it."""
        unknown = np.full(len(self), np.nan, np.float32)
        absent = {"padded_fraction": np.zeros_like(unknown)}
        return {n: self._load(n) if n in self._group else absent.get(n, unknown) for n in SCORES}

    @property
    def sharpness(self) -> NDArray[np.float32]:
        """(N,) float32."""
        return self._load("sharpness")

    def read_encoded(self, indices: Sequence[int] | NDArray[np.integer]) -> list[bytes]:
        """These patches as stored: JPEG images, or zstd frames of raw pixels. Thread-safe."""
        if not self.has_pixels:
            raise SlideError(f"{self.path}: holds coordinates only (--pixels reference); the slide itself is needed")
        return self._shards.read(indices)

    def read(self, indices: Sequence[int] | NDArray[np.integer], out: Pixels | None = None) -> Pixels:
        """These patches decoded: (n, P, P, 3) uint8 RGB, in `out` where it is given. Thread-safe."""
        side = self.info.patch_size_px
        if out is None:
            out = np.empty((len(indices), side, side, 3), np.uint8)
        for i, data in enumerate(self.read_encoded(indices)):
            try:
                if self.info.config["pixels"] == "jpeg":
                    simplejpeg.decode_jpeg(data, "RGB", buffer=out[i])
                else:
                    out[i] = np.frombuffer(Zstd().decode(data), np.uint8).reshape(side, side, 3)
            except (ValueError, RuntimeError) as error:
                raise SlideError(f"{self.path}: patch {indices[i]} cannot be decoded ({error})") from error
        return out

    def _load(self, name: str) -> NDArray[Any]:
        try:
            array = self._group[name]
            assert isinstance(array, zarr.Array)
            # zarr reads a chunk that is not there as zeros; the first version left chunks of zeros out itself.
            if self.version > 1 and array.nchunks_initialized < array.nchunks:
                raise ValueError("a part of it was deleted")
            return np.asarray(array[...])
        except (KeyError, OSError, ValueError, RuntimeError) as error:
            raise SlideError(f"{self.path}: array {name!r} is missing or damaged ({error})") from error


def _from_json(attributes: dict[str, Any], path: Path) -> PatchStoreInfo:
    values: dict[str, Any] = {}
    for entry in fields(PatchStoreInfo):
        if entry.name not in attributes:
            if entry.name == "remote_version":
                continue
            if (entry.default, entry.default_factory) != (MISSING, MISSING) and attributes["version"] in _OLD:
                continue
            raise SlideError(f"{path}: attribute {entry.name!r} is missing; tile the slide again")
        value = tuple(found) if isinstance(found := attributes[entry.name], list) else found
        values[entry.name] = math.nan if value is None and entry.type is float else value
    return PatchStoreInfo(**values)


def store_path(out: Path, slide_id: str) -> Path:
    return out / f"{slide_id}.zarr"
