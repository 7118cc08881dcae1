"""Patches that lie in an object store, and features that go there: brought to a folder of this machine, slide by slide.

A feature file is made there, and put as one object on the condition that nobody has put another one meanwhile.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from features.config import FeatureConfig
from features.feature_file import EmbeddingInfo, read_info_and_dtype
from features.making import Making
from tiling.elsewhere import put_notes
from tiling.jobs.errors import RequestError, SlideError
from tiling.jobs.locks import working_folder
from tiling.jobs.outcomes import Outcome
from tiling.jobs.provenance import require_same
from tiling.jobs.threads import ordered_map
from tiling.manifest import SlideRow
from tiling.objects.files import ObjectFile
from tiling.objects.folder import ABSENT, ObjectFolder, Version
from tiling.objects.locks import object_lock
from tiling.store.objects import fetch_store, find_store
from tiling.store.patches import StoreHead, read_head

_ASKED_AT_ONCE = 32


@dataclass(frozen=True)
class Places:
    """Where patches lie and features go, each a local folder or one in an object store."""

    patches: Path | ObjectFolder
    out: Path | ObjectFolder
    stage: str = ""  # folder for copies

    @property
    def made_in(self) -> Path:
        """What makings take for their folder: `out`, or what is relative to it."""
        return self.out if isinstance(self.out, Path) else Path()

    def folder_of(self, making: Making) -> Path | ObjectFolder:
        """Where this encoder's files go."""
        return self.out.below(_folder(making)) if isinstance(self.out, ObjectFolder) else making.out

    def head(self, slide_id: str) -> StoreHead:
        """What a slide's patch store says of itself. Raises SlideError."""
        name = f"{slide_id}.zarr"
        if isinstance(self.patches, Path):
            return read_head(self.patches / name)
        found = find_store(self.patches, slide_id)
        if found is None:
            raise SlideError(f"{self.patches.shown(name)}: no patch store there; make it with tile-slides")
        return found.head

    def require_usable(self, config: FeatureConfig) -> None:
        """Raises RequestError."""
        for flag, wanted, file in (
            ("--adapt-bn", config.adapt_bn, "--adapted-norms"),
            ("--precision int8", config.calibrates, "--int8-network"),
        ):
            if wanted and not (isinstance(self.patches, Path) and isinstance(self.out, Path)):
                raise RequestError(
                    f"{flag} looks at patches of all slides and keeps what it finds in --out, which both have to be "
                    f"local folders; run it on local copies of some slides, then give {file} FILE"
                )
        if isinstance(self.out, ObjectFolder):
            self.out.require_writable()

    @contextmanager
    def of_run(self, part: str) -> Iterator[Path]:
        """Yield the local folder for what is said of a run, which is put into `out` afterwards."""
        if isinstance(self.out, Path):
            yield self.out
            return
        with working_folder(self.stage) as here:
            yield here
            put_notes(here, self.out, part)

    @contextmanager
    def at_hand(self, slide_id: str, each: Sequence[Making]) -> Iterator[tuple[Sequence[Making], Path]]:
        """Yield makings into a local folder and a local folder of patches; what is made is put when the block ends."""
        if isinstance(self.out, Path) and isinstance(self.patches, Path):
            yield each, self.patches
            return
        with ExitStack() as held:
            there: list[Version] = []
            if isinstance(self.out, ObjectFolder):
                for making in each:
                    held.enter_context(object_lock(self.out, _key(making, slide_id)))
            here = held.enter_context(working_folder(self.stage))
            if isinstance(self.out, ObjectFolder):
                made = [replace(making, out=here / "features" / making.out) for making in each]
                there = [_bring(self.out, making, local, slide_id) for making, local in zip(each, made, strict=True)]
            else:
                made = list(each)
            patches = self.patches
            if isinstance(patches, ObjectFolder):
                patches = fetch_store(patches, slide_id, here / "patches").parent
            before = [_stamp(local.path(slide_id)) for local in made]
            yield made, patches
            for i, version in enumerate(there):
                if _stamp(path := made[i].path(slide_id)) != before[i]:
                    assert isinstance(self.out, ObjectFolder)
                    self.out.put(_key(each[i], slide_id), path.read_bytes(), version)


def finished_in_objects(rows: Sequence[SlideRow], each: Sequence[Making], places: Places) -> dict[str, Outcome]:
    """Outcomes of slides whose files are there; of each, parts are read. RequestError where a folder has other ones."""
    out = places.out
    assert isinstance(out, ObjectFolder)
    there = [set(out.below(_folder(making)).names()[1]) for making in each]

    def look(row: SlideRow) -> Outcome | None:
        name = f"{row.slide_id}.h5"
        with suppress(SlideError):
            if not all(name in names for names in there):
                return None
            store = places.head(row.slide_id)
            for making in each:
                found = _info(out, _key(making, row.slide_id))
                making.require_made(found, making.info(store, row.slide_id), out.shown(_key(making, row.slide_id)))
            return Outcome(row.slide_id, "skipped", "already done", len(store))
        return None

    if any(making.config.overwrite for making in each):
        return {}
    _require_one_making(rows, each, places, there)
    with closing(ordered_map(look, rows, _ASKED_AT_ONCE)) as looks:
        return {outcome.slide_id: outcome for outcome in looks if outcome is not None}


def _require_one_making(
    rows: Sequence[SlideRow], each: Sequence[Making], places: Places, there: Sequence[set[str]]
) -> None:
    """No folder holds two kinds of features."""
    assert isinstance(places.out, ObjectFolder)
    for making, names in zip(each, there, strict=True):
        if files := sorted(name for name in names if name.endswith(".h5")):
            for row in rows:
                with suppress(SlideError):
                    info = making.info(places.head(row.slide_id), row.slide_id)
                    break
            else:
                return
            key = _key(making, files[0].removesuffix(".h5"))
            try:
                require_same(_info(places.out, key)[0].making(), info.making(), places.out.shown(key))
            except SlideError as error:
                raise RequestError(str(error)) from None


def _bring(out: ObjectFolder, making: Making, local: Making, slide_id: str) -> Version:
    """Copy a slide's file, for it to be compared, where there is one. Returns its version."""
    key = _key(making, slide_id)
    if making.config.overwrite:
        found = out.find(key)
        return found.version if found else ABSENT
    read = out.read(key)
    if read is None:
        return ABSENT
    local.out.mkdir(parents=True, exist_ok=True)
    local.path(slide_id).write_bytes(read[0])
    return read[1].version


def _info(out: ObjectFolder, key: str) -> tuple[EmbeddingInfo, str]:
    with ObjectFile(out, key) as file:
        return read_info_and_dtype(Path(key), file)


def _stamp(path: Path) -> tuple[int, int] | None:
    return (path.stat().st_ino, path.stat().st_mtime_ns) if path.exists() else None


def _folder(making: Making) -> str:
    return "" if making.out == Path() else making.out.as_posix()


def _key(making: Making, slide_id: str) -> str:
    return making.path(slide_id).as_posix()
