"""Slides that lie elsewhere, in object stores, on web servers or in slow network folders: found and copied, by fsspec.

A copy counts only if each file has the size that was said and nothing of the slide has changed meanwhile. What may
pass, such as a cut connection or a busy store, is tried again after growing waits.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import fsspec
from fsspec.callbacks import Callback
from fsspec.implementations.local import LocalFileSystem

from tiling.jobs.atomic import no_room, remove
from tiling.jobs.errors import RequestError, SlideError
from tiling.slides.urls import is_url, scheme, shown, url_name, without_secrets

Result = TypeVar("Result")
WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0)  # before each further try
_CONNECT_S, _SILENT_S = 30.0, 60.0  # after which a web server is taken to be gone
_FILES_AT_ONCE = 8  # of one slide
_CHUNK_BYTES = 1 << 22
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "abfss": "az"}
_EXTRAS |= {"http": "http", "https": "http"}
_VERSION_KEYS = ("ETag", "etag", "generation", "mtime", "LastModified", "last_modified", "Last-Modified", "created")
_BUSY = (408, 425, 429)
_NOT_ALONE = {
    ".dcm": "one file of a DICOM series cannot be copied alone; give the folder of the series",
    ".vms": "a slide of several files that are named inside it cannot be copied; give its path without --stage",
    ".vmu": "a slide of several files that are named inside it cannot be copied; give its path without --stage",
}


class _Passing(Exception):
    """A fault that may be gone at the next try."""


@dataclass(frozen=True)
class RemoteFile:
    path: str  # as its file system names it
    name: str  # below the folder that it is copied to
    size: int  # bytes
    version: str  # ETag, or the time of its last change; empty where the store says neither


@dataclass(frozen=True)
class RemoteSlide:
    name: str  # of the file or folder that is opened
    files: tuple[RemoteFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def version(self) -> str:
        """sha256 over names, sizes and ETags; empty where the store does not say when a file has changed."""
        if not all(file.version for file in self.files):
            return ""
        described = [f"{file.name if len(self.files) > 1 else ''}:{file.size}:{file.version}" for file in self.files]
        return hashlib.sha256("\n".join(described).encode()).hexdigest()


def require_readable(urls: Iterable[str]) -> None:
    """Raises RequestError for a kind of URL that nothing here reads."""
    for kind in sorted({scheme(url) for url in urls}):
        try:
            fsspec.get_filesystem_class(kind)
        except ImportError as error:
            extra = _EXTRAS.get(kind)
            remedy = f"pip install 'slidemil[{extra}]'" if extra else str(error)
            raise RequestError(f"{kind}:// URLs need another package: {remedy}") from None
        except ValueError:
            raise RequestError(f"{kind}:// URLs are not read; expected s3, gs, az, https or file") from None


def find_slide(place: str | Path, wait: Callable[[float], None]) -> RemoteSlide:
    """The files of a slide with their sizes and versions; nothing is copied. Raises SlideError.

    place: a URL, or a path. wait: called with the seconds before each further try.
    """
    return _tried(place, lambda: _found(*_opened(place)), wait)


def copy_slide(place: str | Path, slide: RemoteSlide, folder: Path, wait: Callable[[float], None]) -> Path:
    """Copy a slide as it was found into a folder of its own, and return what is to be opened. Raises SlideError.

    wait: as for find_slide; called with 0 as bytes arrive, and may raise to end it.
    """

    def attempt() -> Path:
        remove(folder)
        fs, path = _opened(place)
        with ThreadPoolExecutor(min(_FILES_AT_ONCE, len(slide.files))) as pool:
            for _ in pool.map(lambda file: _copy_file(fs, file, folder / file.name, lambda: wait(0)), slide.files):
                wait(0)
        if _found(fs, path) != slide:
            raise SlideError("it changed while it was copied; is it still being written?")
        return folder / slide.name

    return _tried(place, attempt, wait)


def _opened(place: str | Path) -> tuple[Any, str]:
    if isinstance(place, Path):
        return LocalFileSystem(), str(place)
    how: dict[str, Any] = {"use_listings_cache": False}
    if scheme(place) in ("http", "https"):
        import aiohttp  # an extra

        # Its own limit is five minutes for a whole file.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENT_S)
        how["client_kwargs"] = {"timeout": timeout}
    fs, path = fsspec.core.url_to_fs(place, **how)
    return fs, path


def _found(fs: Any, path: str) -> RemoteSlide:
    name = url_name(path) if is_url(path) else PurePosixPath(path).name
    suffix = PurePosixPath(name).suffix.lower()
    if fs.protocol == ("http", "https") and suffix in (".mrxs", ".zarr"):
        raise SlideError("a slide of several files cannot be read over http, which lists no folder; copy it by hand")
    described = fs.info(path)
    if described["type"] == "directory":
        return RemoteSlide(name, tuple(_below(fs, path, name)))
    if suffix in _NOT_ALONE:
        raise SlideError(_NOT_ALONE[suffix])
    files = [_file(described, name)]
    if suffix == ".mrxs":
        files += _below(fs, path[: -len(suffix)], PurePosixPath(name).stem)
    return RemoteSlide(name, tuple(files))


def _below(fs: Any, folder: str, name: str) -> Iterator[RemoteFile]:
    folder = folder.rstrip("/")
    found = fs.find(folder, detail=True)
    if not found:
        raise SlideError(f"no file in its folder {name}")
    for path in sorted(found):
        below = path[len(folder) :].lstrip("/")
        if ".." in PurePosixPath(below).parts:
            raise SlideError(f"a file of it is named {below!r}, which leads out of its folder")
        yield _file(found[path], f"{name}/{below}")


def _file(described: dict[str, Any], name: str) -> RemoteFile:
    size = described.get("size")
    if size is None:
        raise SlideError("the server does not say its size, without which a copy cannot be checked")
    version = next((str(described[key]) for key in _VERSION_KEYS if described.get(key)), "")
    return RemoteFile(described["name"], name, int(size), version)


def _copy_file(fs: Any, file: RemoteFile, target: Path, arrived: Callable[[], None]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(fs, LocalFileSystem):
        with open(file.path, "rb") as source, target.open("wb") as copy:
            while chunk := source.read(_CHUNK_BYTES):
                copy.write(chunk)
                arrived()
    else:
        fs.get_file(file.path, str(target), callback=_Arriving(arrived))
    if (size := target.stat().st_size) != file.size:
        raise _Passing(f"{size:,} of {file.size:,} bytes arrived")


class _Arriving(Callback):  # type: ignore[misc]
    def __init__(self, arrived: Callable[[], None]) -> None:
        super().__init__()
        self._arrived = arrived

    def relative_update(self, inc: int = 1) -> None:
        self._arrived()


def _tried(place: str | Path, attempt: Callable[[], Result], wait: Callable[[float], None]) -> Result:
    waits = list(WAITS_S)
    while True:
        try:
            return attempt()
        except Exception as error:  # each store's library has errors of its own
            if not _may_pass(error):
                fault = _said(error, place)
                break
            if not waits:
                fault = f"{_said(error, place)}, also after {len(WAITS_S)} more tries"
                break
        wait(waits.pop(0))
    name = str(place) if isinstance(place, Path) else shown(place)
    raise SlideError(f"{name}: {fault}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    """What an HTTP server answered, in the errors of aiohttp, azure, botocore and gcsfs."""
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        said = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
        code = getattr(cause, "code", None) if type(cause).__module__.startswith("gcsfs") else None
        for found in (said, getattr(cause, "status", None), getattr(cause, "status_code", None), code):
            if isinstance(found, int) and 400 <= found < 600:
                return found
    return None


def _may_pass(error: Exception) -> bool:
    if (status := _status(error)) is not None:
        return status >= 500 or status in _BUSY
    if isinstance(error, SlideError | ImportError | NotImplementedError) or no_room(error):
        return False
    if any(isinstance(cause, PermissionError) or "Credentials" in type(cause).__name__ for cause in _causes(error)):
        return False
    unreachable = any(type(cause).__module__.startswith("aiohttp") for cause in _causes(error))
    return unreachable or not isinstance(error, FileNotFoundError | NotADirectoryError)


def _said(error: Exception, place: str | Path) -> str:
    status = _status(error)
    if status in (404, 410):
        return f"there is nothing at this address ({status})"
    if status in (401, 403):
        return f"the store refuses it ({status}); has the link's signature expired, or do credentials lack?"
    if status is not None:
        return f"the store cannot serve it now ({status})"
    if no_room(error):
        return "the disk of --stage is full; make room, or give a smaller --stage-gb"
    if isinstance(error, FileNotFoundError) and not _may_pass(error):
        return "there is no such file"
    if isinstance(error, SlideError):
        return str(error)
    text = without_secrets(str(error), "" if isinstance(place, Path) else place)
    return f"the copy broke off ({text or type(error).__name__})"
