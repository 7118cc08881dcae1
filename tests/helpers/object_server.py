"""A server of the S3 protocol on loopback (moto), which does what goes wrong as it is told."""

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock
from urllib.parse import unquote

import pytest

BUCKET = "bucket"
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "SECRETSECRET", "AWS_DEFAULT_REGION": "us-east-1"}


class ObjectServer:
    """faults: by method and end of the key, what is done at its next requests, one each:

    an int is a status; "cut" ends the connection in the midst of the body; "lost" does what is asked for and ends the
    connection without an answer; "hold" waits for `release` first; "deaf" drops the conditions of a put.
    """

    def __init__(self) -> None:
        moto = pytest.importorskip("moto.server", reason="the S3 protocol needs moto[s3], flask and flask-cors")
        pytest.importorskip("obstore", reason="object stores need the extra `s3`")
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.faults: dict[tuple[str, str], list[int | str]] = {}
        self.requests: list[tuple[str, str]] = []  # (method, key), in order
        self.held, self.release = threading.Event(), threading.Event()
        self._moto = moto.DomainDispatcherApplication(moto.create_backend_app)
        self._one_at_a_time = threading.Lock()  # moto looks, then puts
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.address = f"http://127.0.0.1:{self._server.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def begin(self, place: str) -> None:
        """Forget what was, and use another place of the bucket."""
        self.place = f"s3://{BUCKET}/{place}"
        self.faults.clear()
        self.requests.clear()
        self.held.clear()
        self.release.clear()

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()

    def count(self, method: str, end: str = "") -> int:
        return sum(found == method and key.endswith(end) for found, key in self.requests)

    def _answer(self, environ, start_response):
        method, key = environ["REQUEST_METHOD"], unquote(environ["PATH_INFO"]).removeprefix(f"/{BUCKET}/")
        self.requests.append((method, key))
        fault = next((f.pop(0) for (m, end), f in self.faults.items() if m == method and key.endswith(end) and f), None)
        if isinstance(fault, int):
            codes = {403: "AccessDenied", 503: "SlowDown", 507: "XMinioStorageFull"}
            start_response(f"{fault} Fault", [("Content-Type", "application/xml")])
            return [f"<Error><Code>{codes.get(fault, 'InternalError')}</Code></Error>".encode()]
        if fault == "hold":
            self.held.set()
            self.release.wait(60)
        if fault == "cut" and method == "PUT":
            environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]) // 2)
            start_response("400 Cut", [])
            return self._ended(environ)
        if fault == "deaf":
            environ = {name: value for name, value in environ.items() if not name.startswith("HTTP_IF_")}
        with self._one_at_a_time:
            answered = []
            body = b"".join(self._moto(environ, lambda *head: answered.append(head)))
        if fault == "lost":
            start_response(*answered[0])
            return self._ended(environ)
        start_response(*answered[0])
        return self._half(environ, body) if fault == "cut" else [body]

    def _half(self, environ, body):
        yield body[: len(body) // 2]
        self._ended(environ)

    def _ended(self, environ):
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        return []


@contextmanager
def serving_objects() -> Iterator[ObjectServer]:
    """With an empty bucket."""
    server = ObjectServer()
    try:
        with leading_to(server):
            import boto3

            boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield server
    finally:
        server.close()


@contextmanager
def leading_to(server: ObjectServer) -> Iterator[None]:
    """The environment in which `s3://` is that server."""
    with mock.patch.dict(os.environ, {**ENVIRONMENT, "AWS_ENDPOINT_URL": server.address}):
        yield
