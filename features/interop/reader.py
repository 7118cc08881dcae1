"""One way to the feature files of a folder, whichever tool wrote them."""

from dataclasses import dataclass
from pathlib import Path

from features.feature_file import Embeddings, opened, read_embeddings
from features.interop.clam import H5_FOLDER, PT_FOLDER, Clam
from features.interop.description import Found, read_in_place
from features.interop.layout_file import Layout
from features.interop.native import Native
from features.interop.stamp import Stamp
from features.interop.trident import FOLDER_PREFIX, Trident
from tiling.jobs.errors import RequestError, SlideError
from tiling.slide_ids import in_one_form

# In the order in which a file is asked; CLAM's is the one with nothing special about it.
_ALL: tuple[Layout, ...] = (Native(), Stamp(), Trident(), Clam())
LAYOUTS = {layout.name: layout for layout in _ALL}


@dataclass(frozen=True)
class FeatureFolder:
    """Feature files by slide id (the file's name without its ending)."""

    folder: Path
    paths: dict[str, Path]
    layout: str = ""  # of every file; empty: as its content says

    def read(self, slide_id: str) -> Embeddings:
        """One slide, with what its file says and no more. Raises SlideError."""
        path = self._path(slide_id)
        if self._layout(path).name == "slidemil":
            return read_embeddings(path)
        return read_in_place(self.find(slide_id))

    def find(self, slide_id: str) -> Found:
        """One slide as it stands in the file. Raises SlideError."""
        path = self._path(slide_id)
        return self._layout(path).read(path)

    def _path(self, slide_id: str) -> Path:
        if slide_id not in self.paths:
            raise SlideError(f"{self.folder / slide_id}.h5: no such feature file")
        return self.paths[slide_id]

    def _layout(self, path: Path) -> Layout:
        return LAYOUTS[self.layout] if self.layout else layout_of(path)


def open_features(source: Path, layout: str = "") -> FeatureFolder:
    """The feature files of a folder (or one file): ours, STAMP's, TRIDENT's and CLAM's, which lie in a subfolder.

    A folder without any gives no paths. Raises RequestError where it is not clear which files are meant.
    """
    if source.is_file():
        return FeatureFolder(source.parent, {in_one_form(source.stem): source}, layout)
    here = _files(source, "h5")
    inner = {f: _files(f, "h5") for f in _subfolders(source)}
    places = ([source] if here else []) + [f for f, files in inner.items() if files]
    if len(places) > 1:
        named = ", ".join("the folder itself" if place == source else place.name for place in places)
        raise RequestError(f"{source}: feature files lie in {named}; name the folder whose files you mean")
    tensors = source / PT_FOLDER
    if not places and tensors.is_dir():
        return FeatureFolder(tensors, _files(tensors, "pt"), layout or "clam")
    place = places[0] if places else source
    return FeatureFolder(place, here if place == source else inner[place], layout)


def layout_of(path: Path) -> Layout:
    """By what the file holds. Raises SlideError for a file that cannot be opened or is none of the known."""
    if path.suffix == ".pt":
        return LAYOUTS["clam"]
    with opened(path) as file:
        for layout in LAYOUTS.values():
            if layout.recognises(file):
                return layout
        keys = ", ".join(map(repr, file)) or "nothing"
    raise SlideError(f"{path}: no features of {', '.join(LAYOUTS)}: the file holds {keys}")


def _files(folder: Path, suffix: str) -> dict[str, Path]:
    found = (path for path in sorted(folder.glob(f"*.{suffix}")) if not path.name.startswith("."))
    return {in_one_form(path.stem): path for path in found}


def _subfolders(source: Path) -> list[Path]:
    named = [source / H5_FOLDER, *sorted(source.glob(f"{FOLDER_PREFIX}*"))]
    return [folder for folder in named if folder.is_dir()]
