"""URLs of slides: the name in one, and what of one may be shown."""

import re
from pathlib import PurePosixPath
from urllib.parse import quote, unquote

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_IN_TEXT = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://([^\s'\"<>]*)")
_CONTAINER_AT_ACCOUNT = ("abfs", "abfss", "az")  # elsewhere what stands before @ is a user with a password
_HTTP = ("http", "https")


def is_url(text: str) -> bool:
    return _SCHEME.match(text) is not None


def scheme(url: str) -> str:
    return url.partition("://")[0].lower()


def shown(url: str) -> str:
    """The URL without user, password, query and fragment: tokens and signatures stand there."""
    return _without_secret(scheme(url), quote(url.partition("://")[2], safe="/%:@?#=&+~,;!$*()[]"))


def without_secrets(text: str, url: str = "") -> str:
    """A text, such as another library's error, in which each URL is as `shown`. url: one that it may hold."""
    if url:
        text = text.replace(url, shown(url))
        query = url.partition("?")[2]
        text = text.replace(query, "…") if query else text
    return _IN_TEXT.sub(lambda found: _without_secret(*found.groups()), text)


def url_name(url: str) -> str:
    """Of the file or folder: `https://host/a%20b.svs?signature=…` is `a b.svs`."""
    return PurePosixPath(unquote(shown(url))).name


def _without_secret(scheme: str, rest: str) -> str:
    rest = rest.partition("?")[0]
    if scheme in _HTTP:
        rest = rest.partition("#")[0]
    place, slash, path = rest.partition("/")
    if scheme not in _CONTAINER_AT_ACCOUNT:
        place = place.rpartition("@")[2]
    return f"{scheme}://{place}{slash}{path}"
