"""Pages from templates: every value is escaped unless it is markup, and a name that nobody fills is an error."""

import functools
from typing import Any

import jinja2


@functools.cache
def environment(room: str) -> jinja2.Environment:
    """The templates that lie in the folder of the module `room`, such as `tiling.qc`."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader(room, ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":"), "allow_nan": False}
    return made


def render(room: str, template: str, **values: Any) -> str:
    """The template, filled. What is HTML already comes as markupsafe.Markup; data for a script by the filter `tojson`.

    The same values give the same bytes.
    """
    return environment(room).get_template(template).render(**values)
