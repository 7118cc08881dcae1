"""A server of the S3 protocol on loopback (moto), which does what goes wrong as it is told.

It also speaks as Google's XML API does, which differs in its conditions: x-goog-if-generation-match has the number of a
version, or 0 for an object that is absent.
"""

import json
import logging
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock
from urllib.parse import unquote

import pytest

BUCKET = "bucket"
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "SECRETSECRET", "AWS_DEFAULT_REGION": "us-east-1"}

AUTHORIZATION = "AWS4-HMAC-SHA256 Credential=test/20200101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"


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
        self._generations: dict[str, str] = {}  # ETags by the number that Google would give
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.address = f"http://127.0.0.1:{self._server.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def begin(self, place: str, kind: str = "s3") -> None:
        """Forget what was, and use another place of the bucket. kind: s3 or gs."""
        self.place = f"{kind}://{BUCKET}/{place}"
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
        if _is_google(environ):
            environ = self._from_google(environ)
        if fault == "deaf":
            environ = {name: value for name, value in environ.items() if not name.startswith("HTTP_IF_")}
        with self._one_at_a_time:
            answered = []
            body = b"".join(self._moto(environ, lambda *head: answered.append(head)))
        if e_tag := dict(answered[0][1]).get("ETag"):
            number = str(int(e_tag.strip('"')[:15], 16))
            self._generations[number] = e_tag
            answered[0][1].append(("x-goog-generation", number))
        if fault == "lost":
            start_response(*answered[0])
            return self._ended(environ)
        start_response(*answered[0])
        return self._half(environ, body) if fault == "cut" else [body]

    def _from_google(self, environ):
        """The same request in the words of S3."""
        wanted = environ.get("HTTP_X_GOOG_IF_GENERATION_MATCH")
        condition = {}
        if wanted is not None:
            condition = {"HTTP_IF_NONE_MATCH": "*"} if wanted == "0" else {"HTTP_IF_MATCH": self._generations[wanted]}
        return environ | {"HTTP_AUTHORIZATION": AUTHORIZATION} | condition

    def _half(self, environ, body):
        yield body[: len(body) // 2]
        self._ended(environ)

    def _ended(self, environ):
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        return []


def _is_google(environ) -> bool:
    return not environ.get("HTTP_AUTHORIZATION", "").startswith("AWS4")


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
    """The environment in which `s3://` and `gs://` are that server."""
    account = {"gcs_base_url": server.address, "disable_oauth": True}
    account |= dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(json.dumps(account))
        file.flush()
        addresses = {"AWS_ENDPOINT_URL": server.address, "GOOGLE_SERVICE_ACCOUNT": file.name}
        with mock.patch.dict(os.environ, ENVIRONMENT | addresses):
            yield
