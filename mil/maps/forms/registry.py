"""The forms of a heatmap. A form is imported on first use, so that `--help` waits for none of them.

A new form is one module with the four names of `Form`, and one line in `FORMS`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from pathlib import Path

    from mil.maps.drawn import Drawn

FORMS = {  # name of the form: its module, one that begins with a dot lies in this folder
    "png": ".png",
    "geojson": ".geojson",
    "contours": ".contours",
    "ometiff": ".ometiff",
    "csv": ".csv",
    "gallery": ".gallery",
    "html": ".html",
}


class Form(Protocol):
    """What a form's module holds."""

    ENDING: str
    """The file is `<slide_id>` and this."""
    HELP: str
    """What it is for; the index says it of each link."""

    def write(self, path: "Path", drawn: "Drawn") -> None:
        """Write the file whole or not at all; the same `drawn` gives the same bytes."""

    def read_provenance(self, path: "Path", drawn: "Drawn") -> dict[str, Any]:
        """What an existing file was made from; empty where it was not made by this program.

        `drawn` is what would be written, for a format that has no place for its origin. Raises ValueError or OSError
        where the file cannot be read.
        """


def load_form(name: str) -> Form:
    """KeyError for an unknown name."""
    return cast(Form, import_module(FORMS[name], __package__))
