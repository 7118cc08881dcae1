"""What notebooks and scripts call: patches in, outcomes and arrays out, nothing printed and no state left behind."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.config import FeatureConfig
from features.feature_file import Embeddings
from features.interop.config import ConvertConfig
from features.interop.convert import convert_features, find_slides
from features.interop.reader import FeatureFolder, open_features
from features.pipeline import extract_features, find_stores
from tiling.jobs.command import settings
from tiling.jobs.errors import RequestError, SlideError
from tiling.jobs.listener import Callback, OnOutcome
from tiling.jobs.outcomes import Outcome, Outcomes
from tiling.objects.folder import folder_at, local_folder

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "ConvertConfig",
    "Embeddings",
    "FeatureConfig",
    "Outcome",
    "Outcomes",
    "RequestError",
    "SlideError",
    "convert",
    "extract",
    "read",
]


def extract(
    patches: str | Path,
    out: str | Path,
    config: FeatureConfig | None = None,
    slides: "str | Path | pd.DataFrame | None" = None,
    on_outcome: OnOutcome | None = None,
    **given: Any,
) -> Outcomes:
    """Embed the patch stores of a folder into feature files `out/<slide_id>.h5`, as `extract-features` does.

    patches, out: folders, or the addresses of ones in an object store, such as "s3://bucket/features".
    config: the settings; those given by name, such as `encoder="resnet18"`, take the place of its own.
    slides: a slide table (.csv file, or data frame with its columns): embed its slides only.
    on_outcome: called with (outcome, slides that have ended, slides in all) as each slide ends.

    Raises RequestError. A slide that cannot be done is an outcome, not an exception.
    """
    config = settings(FeatureConfig, config, given)
    folder = folder_at(patches)
    rows = find_stores(folder, _table(slides))
    return extract_features(rows, config, folder, folder_at(out), Callback(on_outcome))


def read(path: str | Path) -> Embeddings:
    """The features of one slide, whichever tool wrote the file. Raises SlideError."""
    path = Path(path)
    return FeatureFolder(path.parent, {path.stem: path}).read(path.stem)


def convert(
    features: str | Path,
    out: str | Path,
    target: str,
    config: ConvertConfig | None = None,
    slides: "str | Path | pd.DataFrame | None" = None,
    **given: Any,
) -> Outcomes:
    """Feature files in another layout, "slidemil", "clam", "trident" or "stamp", as `convert-features` makes them.

    config, slides: as of `extract`. Raises RequestError.
    """
    source = open_features(local_folder(features, "features are converted"))
    rows = find_slides(source, _table(slides))
    folder = local_folder(out, "features are converted")
    return convert_features(source, rows, target, settings(ConvertConfig, config, given), folder)


def _table(slides: "str | Path | pd.DataFrame | None") -> "Path | pd.DataFrame | None":
    return Path(slides) if isinstance(slides, str) else slides
