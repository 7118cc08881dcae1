"""The slide viewer's server: a page, tiles of the slides of one table, and what a run says of them.

Requests name a slide by its percent-encoded id, which is decoded once and looked up, and tiles by their numbers; no
path is made of a request. The
server binds to the loopback address only and answers only requests whose Host, and Origin if there is one, is its own,
so that a page of another site can neither read it nor reach it under a name of its own (DNS rebinding).
"""

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any
from urllib.parse import unquote

import yaml

from mil.maps.grid import colour_bar, colour_scale
from mil.maps.pictures import encoded
from mil.run.layout import require_complete
from mil.viewer.page import FILES, HEADERS
from mil.viewer.tiles import OpenSlides, read_tile
from mil.viewer.views import SlideView, list_slides, slide_view
from tiling.jobs.errors import RequestError, SlideError
from tiling.manifest import SlideRow, load_slides, load_table

LOOPBACK = "127.0.0.1"
_ID = "([^/]+)"
_SLIDE = re.compile(rf"/slides/{_ID}\.json", re.ASCII)
_TILE = re.compile(rf"/tiles/{_ID}/(\d{{1,2}})/(\d{{1,7}})/(\d{{1,7}})\.jpg", re.ASCII)
_LAYER = re.compile(rf"/layers/{_ID}/(\d{{1,3}})/(\d{{1,2}})/(\d{{1,7}})/(\d{{1,7}})\.png", re.ASCII)
_BAR = re.compile(rf"/layers/{_ID}/(\d{{1,3}})/bar\.png", re.ASCII)
_PATCH = re.compile(rf"/patches/{_ID}/(\d{{1,9}})\.jpg", re.ASCII)
_TILES_KEPT = 1024  # some 40 MB
_VIEWS_KEPT = 4
_TILES_AT_ONCE = 4  # more would only wait for the processor, and hold memory


def rows_to_view(run: Path, slides: str) -> list[SlideRow]:
    """Slides of `slides` (table, folder or glob), or of the table that the run was trained with.

    Files may be missing: such a slide says so when it is opened. Raises RequestError where no slide has a path.
    """
    require_complete(run)
    if slides and not slides.lower().endswith(".csv"):
        return load_slides(slides)
    table = slides or str(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")).get("labels", ""))
    rows = load_table(Path(table), needs_path=False)
    if not any(row.path for row in rows):
        whose = "" if slides else ", which the run was trained with,"
        raise RequestError(
            f"{table}{whose} has no column 'path' with slide files (URLs are not read here); "
            "name a table that has with --slides"
        )
    return rows


def serve(run: Path, rows: Sequence[SlideRow], port: int) -> "SlideServer":
    """A server that is bound; the caller runs `serve_forever`. Port 0: a free one. Raises RequestError if taken."""
    try:
        return SlideServer(run, rows, port)
    except (OSError, OverflowError) as error:
        raise RequestError(f"--port {port}: cannot be used ({error}); choose another, 0 for a free one") from error


class SlideServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, run: Path, rows: Sequence[SlideRow], port: int) -> None:
        self.run, self.rows = run, {row.slide_id: row for row in rows}
        self.open_slides = OpenSlides({row.slide_id: row.path for row in rows})
        self.view = lru_cache(_VIEWS_KEPT)(self._view)
        self.tile = lru_cache(_TILES_KEPT)(self._tile)
        self._turns = BoundedSemaphore(_TILES_AT_ONCE)
        super().__init__((LOOPBACK, port), _Handler)

    @property
    def address(self) -> str:
        return f"http://{LOOPBACK}:{self.server_port}/"

    def server_close(self) -> None:
        super().server_close()
        self.open_slides.close()

    def answer(self, path: str) -> tuple[str, bytes]:
        """Content type and body. LookupError: there is no such thing. SlideError: the slide cannot be read."""
        if path in FILES:
            kind, file = FILES[path]
            return f"{kind}; charset=utf-8", file.read_bytes()
        if path == "/slides.json":
            return _json(list_slides(self.run, self.rows.values()))
        if found := _SLIDE.fullmatch(path):
            return _json(self.view(self._id(found[1])).description())
        if found := _TILE.fullmatch(path):
            return "image/jpeg", self.tile(self._id(found[1]), *map(int, found.groups()[1:]))
        if found := _LAYER.fullmatch(path):
            view = self.view(self._id(found[1]))
            with self._turns:
                return "image/png", encoded(view.tile(*map(int, found.groups()[1:])))
        if found := _BAR.fullmatch(path):
            layers = self.view(self._id(found[1])).layers
            return "image/png", encoded(colour_bar(colour_scale(list(layers.values())[int(found[2])])))
        if found := _PATCH.fullmatch(path):
            slide_id = self._id(found[1])
            view = self.view(slide_id)
            with self._turns, self.open_slides.use(slide_id) as source:
                return "image/jpeg", encoded(view.patch(source, int(found[2])))
        raise LookupError(path)

    def _id(self, encoded_id: str) -> str:
        """The slide that an address names. Raises LookupError where none is called so."""
        slide_id = unquote(encoded_id)
        if slide_id not in self.rows:
            raise LookupError(encoded_id)
        return slide_id

    def _view(self, slide_id: str) -> SlideView:
        with self.open_slides.use(slide_id) as source:
            return slide_view(self.run, self.rows[slide_id], source)

    def _tile(self, slide_id: str, zoom: int, column: int, row: int) -> bytes:
        with self._turns, self.open_slides.use(slide_id) as source:
            return encoded(read_tile(source, zoom, column, row))


class _Handler(BaseHTTPRequestHandler):
    server: SlideServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "slidemil", ""
    timeout = 60  # of a connection that says nothing

    def do_GET(self) -> None:
        hosts = {f"{name}:{self.server.server_port}" for name in (LOOPBACK, "localhost")}
        origin = self.headers.get("Origin")
        if self.headers.get("Host") not in hosts or (origin and origin.removeprefix("http://") not in hosts):
            self._send(403, "text/plain", b"only this machine's own pages are answered\n")
            return
        try:
            self._send(200, *self.server.answer(self.path))
        except LookupError:
            self._send(404, "text/plain", b"no such thing here\n")
        except (SlideError, RequestError) as error:
            self._send(422, "text/plain; charset=utf-8", f"{error}\n".encode())
        except OSError as error:  # the disk of the slides or of the run is gone
            self._send(500, "text/plain; charset=utf-8", f"{self.path}: {error}\n".encode())

    def _refuse(self) -> None:
        self.close_connection = True  # its body is not read
        self._send(405, "text/plain", b"only GET\n", {"Allow": "GET", "Connection": "close"})

    do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_OPTIONS = do_TRACE = do_CONNECT = _refuse

    def _send(self, status: int, kind: str, body: bytes, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        cache = "private, max-age=3600" if kind.startswith("image/") else "no-store"
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": cache}
        for name, value in {**headers, **HEADERS, **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:  # the page moved on before its tile came
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _json(value: Any) -> tuple[str, bytes]:
    return "application/json", json.dumps(value, allow_nan=False).encode()
