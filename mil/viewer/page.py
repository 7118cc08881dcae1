"""The viewer's page: the files it is made of, and what a browser lets it do."""

from importlib import resources

_OWN, _SHARED, _LEAFLET = (
    resources.files("mil.viewer"),
    resources.files("mil.pages"),
    resources.files("mil.pages") / "leaflet",  # 1.9.4 as released, its licence beside it
)
FILES = {  # by address: content type, file
    "/": ("text/html", _OWN / "viewer.html"),
    "/viewer.js": ("text/javascript", _OWN / "viewer.js"),
    "/viewer.css": ("text/css", _OWN / "viewer.css"),
    "/slide_map.js": ("text/javascript", _SHARED / "slide_map.js"),
    "/slide_map.css": ("text/css", _SHARED / "slide_map.css"),
    "/page.css": ("text/css", resources.files("tiling.qc") / "page.css"),
    "/leaflet.js": ("text/javascript", _LEAFLET / "leaflet.js"),
    "/leaflet.css": ("text/css", _LEAFLET / "leaflet.css"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
