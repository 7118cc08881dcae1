"""A folder in an object store: what lies there is read, listed, and put whole, where it is what it was expected to be.

A put succeeds only as long as the object is the version that its writer knew, or is still absent; so of two writers one
wins, and nothing is mixed. Addresses hold no secrets: credentials are those of the store's environment variables.
"""

import functools
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from tiling.jobs.errors import RequestError, SlideError
from tiling.slides.urls import is_url, scheme, shown, without_secrets

Result = TypeVar("Result")
Version = Mapping[str, str]  # of an object, as its store tells it from others
ABSENT: Version = {}  # of an object that is not there
SCHEMES = {"s3": "s3", "s3a": "s3", "gs": "gs", "az": "az"}  # and the extra that each needs
FIRST_WAIT_S, TRIES = 0.1, 9  # waits double, with some chance: about 30 s in all
_SILENT_S, _CONNECT_S = 600, 30
_TRIED, _LEFT_AFTER_S = ".tried", 60.0  # objects that the store is tried with; those of killed jobs
_BROKEN_OFF = 4  # tries of an answer that breaks off in its midst
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_FULL = ("QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "InsufficientCapacity", "EntityTooLarge")
_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_DEFAULT_REGION (of a profile: "
    '`eval "$(aws configure export-credentials --format env)"`)',
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}


class Taken(Exception):
    """The object is not what was expected: another writer put it meanwhile."""


@dataclass(frozen=True)
class Found:
    """An object."""

    size: int  # bytes
    version: Version
    changed_s: float  # by the store's clock, since 1970


@dataclass(frozen=True)
class ObjectFolder:
    """What lies under an address. Faults of one object are SlideErrors; RequestError where nothing else can go on."""

    url: str

    def __str__(self) -> str:
        return self.url

    def below(self, name: str) -> "ObjectFolder":
        return ObjectFolder(f"{self.url}/{name}") if name else self

    def find(self, name: str) -> Found | None:
        try:
            return self._done(name, lambda obs, store: _found(obs.head(store, name)))
        except FileNotFoundError:
            return None

    def read(self, name: str, most: int | None = None) -> tuple[bytes, Found] | None:
        """Its bytes, the first `most` of them, and what it is. None where it is absent."""

        def attempt(obs: Any, store: Any) -> tuple[bytes, Found]:
            answer = obs.get(store, name, options={} if most is None else {"range": (0, most)})
            found = _found(answer.meta)
            data = bytes(answer.bytes())
            if len(data) != (found.size if most is None else min(most, found.size)):
                raise OSError(f"{len(data):,} of {found.size:,} bytes arrived")
            return data, found

        try:
            return self._done(name, attempt)
        except FileNotFoundError:
            return None

    def read_part(self, name: str, start: int, length: int) -> bytes:
        return bytes(self._done(name, lambda obs, store: bytes(obs.get_range(store, name, start=start, length=length))))

    def put(self, name: str, data: bytes, instead: Version | None = None) -> Version:
        """Put a whole object, and return its version. instead: what it must be until then; None: whatever it is.

        Raises Taken where it is another one, unless it holds these very bytes: then an answer was lost.
        """
        mode = "overwrite" if instead is None else dict(instead) or "create"
        try:
            return _version(
                self._done(name, lambda obs, store: obs.put(store, name, data, mode=mode, use_multipart=False))
            )
        except (Taken, FileNotFoundError):
            there = self.read(name)
            if there is None or there[0] != data:
                raise Taken(f"{self.shown(name)}: another job has put it meanwhile") from None
            return there[1].version

    def names(self) -> tuple[list[str], list[str]]:
        """Names of folders and of objects, of this level alone; a thousand an answer."""
        listed = self._done("", lambda obs, store: obs.list_with_delimiter(store))
        return list(listed["common_prefixes"]), [each["path"] for each in listed["objects"]]

    def files(self, folder: str = "") -> dict[str, Found]:
        """All objects below a folder, by their names."""
        listed = self._done(folder, lambda obs, store: obs.list(store, folder or None).collect())
        return {each["path"]: _found(each) for each in listed}

    def delete(self, names: Iterable[str]) -> None:
        """Objects that are gone already are no fault."""
        if names := list(names):
            with suppress(FileNotFoundError):
                self._done(names[0], lambda obs, store: obs.delete(store, names))

    def require_writable(self) -> None:
        """Try what outputs need. RequestError where the store refuses it, or puts without regard to a condition."""
        name = f"{_TRIED}/{secrets.token_hex(8)}"
        try:
            first = self.put(name, b"first", ABSENT)
            second = self.put(name, b"second", first)
            if not second or self._takes(name, ABSENT) or self._takes(name, first):
                raise RequestError(
                    f"{self}: this store puts objects without regard to If-None-Match and If-Match, without which two "
                    "jobs could mix their outputs; choose another store, or write to a local folder and copy that"
                )
        except SlideError as error:
            raise RequestError(str(error)) from None
        finally:
            with suppress(SlideError, RequestError):
                tried = self.files(_TRIED)
                now_s = tried[name].changed_s if name in tried else 0.0
                left = [other for other, found in tried.items() if now_s - found.changed_s > _LEFT_AFTER_S]
                self.delete([name, *left])

    def _takes(self, name: str, instead: Version) -> bool:
        try:
            self.put(name, secrets.token_bytes(8), instead)
        except Taken:
            return False
        return True

    def shown(self, name: str) -> str:
        return f"{self.url}/{name}" if name else self.url

    def _done(self, name: str, attempt: Callable[[Any, Any], Result]) -> Result:
        """Raises FileNotFoundError, Taken, SlideError or RequestError."""
        obs, store = _opened(self.url)
        for left in reversed(range(_BROKEN_OFF)):
            try:
                return attempt(obs, store)
            except (obs.exceptions.AlreadyExistsError, obs.exceptions.PreconditionError):
                raise Taken from None
            except (obs.exceptions.BaseError, OSError) as error:
                text = str(error)
                if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in text:
                    raise
                if left and not _STATUS.search(text) and " retries" not in text:
                    continue
                raise self._fault(name, text) from None
        raise AssertionError

    def _fault(self, name: str, text: str) -> Exception:
        status, code = _STATUS.search(text), _CODE.search(text)
        said = " ".join(found[1] for found in (status, code) if found)
        kind = SCHEMES[scheme(self.url)]
        if "NoSuchBucket" in text or "ContainerNotFound" in text:
            return RequestError(f"{self}: there is no such bucket ({said}); make it, or correct the address")
        if "169.254.169.254" in text or "metadata.google" in text or (status is None and "redential" in text):
            return RequestError(f"{self}: no credentials were found, nor a role of this machine; {_CREDENTIALS[kind]}")
        if status and status[1] in ("401", "403") and said.partition(" ")[2] not in _FULL:
            return RequestError(
                f"{self.shown(name)}: the store refuses it ({said}); do the credentials hold, and may they get, put, "
                f"delete and list objects there? {_CREDENTIALS[kind]}"
            )
        if (status and status[1] == "507") or (code and code[1] in _FULL):
            return RequestError(
                f"{self}: the store is full ({said}); make room or raise its quota, then run the same command again"
            )
        if status:
            return SlideError(f"{self.shown(name)}: the store cannot serve it now ({said}), also after {TRIES} tries")
        first = without_secrets(text.partition("\n")[0])
        return SlideError(f"{self.shown(name)}: the store cannot be reached, or broke off ({first})")


def folder_at(address: str | Path) -> Path | ObjectFolder:
    """A local folder, or one in an object store. RequestError for other addresses, and for secrets in one."""
    if not is_url(str(address)):
        return Path(address).absolute()  # a Dask worker has another working folder
    url = str(address).rstrip("/")
    if scheme(url) not in SCHEMES:
        raise RequestError(f"{shown(url)}: outputs lie in local folders or at {', '.join(SCHEMES)}://")
    if without_secrets(url) != url or "@" in url:
        raise RequestError(
            f"{shown(url)}: an output's address holds no user, password or query; "
            f"{_CREDENTIALS[SCHEMES[scheme(url)]]} instead"
        )
    folder = ObjectFolder(url)
    _opened(url)
    return folder


def local_folder(address: str | Path, what: str) -> Path:
    """RequestError for the address of an object store, where only a local folder will do. what: is said of it."""
    if is_url(str(address)) or re.match(r"(s3a?|gs|az|https?):/", str(address)):
        raise RequestError(
            f"{shown(str(address))}: {what} in local folders alone; copy what lies elsewhere (for example with "
            "`aws s3 sync`), or name a local folder and copy that when it is made"
        )
    return Path(address)


@functools.cache
def _opened(url: str) -> tuple[Any, Any]:
    """obstore and its store. Each process has its own."""
    try:
        import obstore  # an extra
        from obstore.store import from_url
    except ImportError:
        extra = SCHEMES[scheme(url)]
        raise RequestError(f"{url}: needs another package: pip install 'slidemil[{extra}]'") from None
    retry: Any = {
        "max_retries": TRIES - 1,
        "backoff": {"init_backoff": timedelta(seconds=FIRST_WAIT_S), "base": 2, "max_backoff": timedelta(seconds=16)},
    }
    client: Any = {
        "allow_http": True,  # where AWS_ENDPOINT_URL says so, and nowhere else
        "timeout": timedelta(seconds=_SILENT_S),
        "connect_timeout": timedelta(seconds=_CONNECT_S),
    }
    try:
        return obstore, from_url(url, client_options=client, retry_config=retry)
    except (obstore.exceptions.BaseError, ValueError) as error:
        said = str(error).partition("\n")[0]
        raise RequestError(f"{url}: {said}; {_CREDENTIALS[SCHEMES[scheme(url)]]}") from None


def _found(meta: Mapping[str, Any]) -> Found:
    return Found(int(meta["size"]), _version(meta), meta["last_modified"].timestamp())


def _version(meta: Mapping[str, Any]) -> Version:
    return {key: meta[key] for key in ("e_tag", "version") if meta.get(key)}
