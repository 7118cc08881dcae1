"""A web server on loopback that serves whole files of a folder, no ranges, and does what goes wrong as it is told."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

CHUNK = 1 << 16


class WebServer(ThreadingHTTPServer):
    """faults: by file name, what is done at its next GETs, one each:

    an int is a status; "cut" ends the connection after half the file; "hold" sends half and then waits for `release`;
    "other" serves an ETag of its own.
    says: by which a change of a file is known, "ETag", "Last-Modified" or neither.
    signed: links are signed for GET alone, as those of object stores are, so HEAD is refused.
    """

    daemon_threads = True

    def __init__(self, folder: Path, bytes_per_s: float = 0.0) -> None:
        self.folder, self.bytes_per_s = folder, bytes_per_s
        self.faults: dict[str, list[int | str]] = {}
        self.requests: list[tuple[str, str]] = []  # (method, file name), in order
        self.held, self.release = threading.Event(), threading.Event()
        self.etags: dict[str, str] = {}
        self.says, self.signed = "ETag", False
        super().__init__(("127.0.0.1", 0), _Handler)

    def url(self, name: str, query: str = "") -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}{'?' + query if query else ''}"

    def gets(self, name: str) -> int:
        return self.requests.count(("GET", name))


@contextmanager
def serving(folder: Path, bytes_per_s: float = 0.0) -> Iterator[WebServer]:
    server = WebServer(folder, bytes_per_s)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.release.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: WebServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        name = unquote(urlsplit(self.path).path).lstrip("/")
        self.server.requests.append((self.command, name))
        faults = self.server.faults.get(name, [])
        fault = faults.pop(0) if faults and self.command == "GET" else None
        file = self.server.folder / name
        status = fault if isinstance(fault, int) else 200 if file.is_file() else 404
        if self.command == "HEAD" and faults and isinstance(faults[0], int):
            status = faults[0]
        if self.command == "HEAD" and self.server.signed:
            status = 403
        if status != 200:
            self._head(status, 0)
            return
        content = file.read_bytes()
        changed = formatdate(file.stat().st_mtime, usegmt=True)
        known_by = {"ETag": self.server.etags.get(name, f'"{hash(content)}"'), "Last-Modified": changed}
        self._head(200, len(content), known_by.get(self.server.says, ""))
        if self.command == "GET":
            self._send(content, fault)

    def _head(self, status: int, size: int, known_by: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(size))
        if known_by:
            self.send_header(self.server.says, known_by)
        self.end_headers()

    def _send(self, content: bytes, fault: int | str | None) -> None:
        half = len(content) // 2 if fault in ("cut", "hold") else len(content)
        for start in range(0, half, CHUNK):
            part = content[start : min(start + CHUNK, half)]
            self.wfile.write(part)
            if self.server.bytes_per_s:
                time.sleep(len(part) / self.server.bytes_per_s)
        if fault == "hold":
            self.server.held.set()
            self.server.release.wait(60)
            self.wfile.write(content[half:])
        if fault == "cut":
            self.close_connection = True
            self.connection.close()
