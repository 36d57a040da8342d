"""Keys: who may ask, what for, and how much."""

import base64
import binascii
import hashlib
import hmac
import math
import os
import secrets
import threading
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softprompt.errors import DataError
from softprompt.serve.faults import ServingError

PREDICT_KEY, ADMIN_KEY = "SOFTPROMPT_API_KEY", "SOFTPROMPT_ADMIN_KEY"
SCOPES = ("predict", "admin", "metrics")
_MIN_LENGTH = 16
_DIGITS = 64
_NAMES = {"name", "sha256", "scopes", "requests_per_minute", "max_requests"}
_MINUTE = 60.0


@dataclass(frozen=True)
class ApiKey:
    """A key, of which only the hash is known.

    Args:
        name: for logs and limits.
        sha256: the hash of the key, in hexadecimal.
        scopes: ``predict``, ``admin``, ``metrics``.
        requests_per_minute: the most requests within a minute; None without a limit.
        max_requests: the most requests at the same time; None without a limit.
    """

    name: str
    sha256: str
    scopes: frozenset[str]
    requests_per_minute: int | None = None
    max_requests: int | None = None


def make_key(name: str) -> tuple[str, str]:
    """Make a new key.

    Args:
        name: for logs.

    Returns:
        The key, to be given to its user, and the lines for the file of keys.
    """
    secret = f"sp-{secrets.token_urlsafe(32)}"
    lines = f'[[key]]\nname = "{name}"\nsha256 = "{_hash(secret)}"\nscopes = ["predict"]\n'
    return secret, lines


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def load_keys(path: Path | None, environment: Mapping[str, str] = os.environ) -> tuple[ApiKey, ...]:
    """Read the keys of a file and of the environment.

    Args:
        path: of a TOML file with tables ``[[key]]``; None for the environment alone.
        environment: may have a key for predictions and one for everything, in plain text.

    Raises:
        DataError: the file cannot be read, or a key is too short to be safe.
    """
    keys = [] if path is None else _read_file(path)
    for name, scopes in ((PREDICT_KEY, {"predict"}), (ADMIN_KEY, {*SCOPES})):
        secret = environment.get(name)
        if not secret:
            continue
        if len(secret) < _MIN_LENGTH:
            msg = f"{name} has {len(secret)} characters; a key needs at least {_MIN_LENGTH}."
            raise DataError(msg)
        keys.append(ApiKey(name.lower(), _hash(secret), frozenset(scopes)))
    return tuple(keys)


def _read_file(path: Path) -> list[ApiKey]:
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"{path} is not valid TOML: {error}."
        raise DataError(msg) from error
    tables = content.get("key")
    if {*content} != {"key"} or not isinstance(tables, list) or not tables:
        msg = f"{path} must have tables [[key]] and nothing else; softprompt serve --make-key NAME."
        raise DataError(msg)
    keys = [_read_key(table, where=f"{path}, key {n}") for n, table in enumerate(tables, start=1)]
    if len({key.name for key in keys}) < len(keys):
        msg = f"{path} has two keys of the same name. Give each a name of its own."
        raise DataError(msg)
    return keys


def _read_key(table: Any, *, where: str) -> ApiKey:  # noqa: ANN401  # what a file holds
    match table:
        case {"name": str(name), "sha256": str(digest), "scopes": [*scopes]} if (
            not {*table} - _NAMES
            and len(digest) == _DIGITS
            and scopes
            and {*map(str, scopes)} <= {*SCOPES}
        ):
            limits = [table.get("requests_per_minute"), table.get("max_requests")]
            if all(limit is None or (type(limit) is int and limit > 0) for limit in limits):
                return ApiKey(name, digest.lower(), frozenset(map(str, scopes)), *limits)
    msg = (
        f"{where} is not a valid key: it needs name, sha256 (64 hexadecimal digits) and scopes "
        f"({', '.join(SCOPES)}), and may have requests_per_minute and max_requests, at least 1."
    )
    raise DataError(msg)


def read_secret(authorization: str) -> str | None:
    """The key of a header ``Authorization``: a bearer's, or the password of a browser.

    Args:
        authorization: the header's value.

    Examples:
        >>> read_secret("Bearer secret")
        'secret'
    """
    method, _, value = authorization.partition(" ")
    if method.lower() == "bearer":
        return value.strip() or None
    if method.lower() != "basic":
        return None
    try:
        return base64.b64decode(value, validate=True).decode("utf-8").partition(":")[2] or None
    except (binascii.Error, UnicodeDecodeError):
        return None


class KeyRing:
    """The keys of a server, and what each has used of its limits.

    Args:
        keys: without any, every request is allowed.
        clock: the time in seconds.
    """

    def __init__(
        self, keys: Sequence[ApiKey], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.keys = tuple(keys)
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens = {key.name: float(key.requests_per_minute or 0) for key in self.keys}
        self._filled = dict.fromkeys(self._tokens, clock())
        self._open = dict.fromkeys(self._tokens, 0)

    def authenticate(self, secret: str | None, *, scope: str) -> ApiKey | None:
        """Find the key of a request; all keys are compared, each in constant time.

        Args:
            secret: of the request.
            scope: that it needs.

        Returns:
            The key; None if the server has no keys.

        Raises:
            ServingError: the key is missing, wrong, or not for this scope.
        """
        if not self.keys:
            return None
        if secret is None:
            msg = "the request has no key. Send the header 'Authorization: Bearer KEY'."
            raise ServingError(msg, kind="unauthorized")
        digest = _hash(secret)
        found = [key for key in self.keys if hmac.compare_digest(key.sha256, digest)]
        if not found:
            msg = "the key is not known. Check it, or ask for a new one."
            raise ServingError(msg, kind="unauthorized")
        if scope not in found[0].scopes:
            msg = f"the key {found[0].name!r} is not for {scope}. Use one that has this scope."
            raise ServingError(msg, kind="forbidden")
        return found[0]

    def enter(self, key: ApiKey | None) -> None:
        """Count a request.

        Args:
            key: of the request.

        Raises:
            ServingError: the key has reached a limit.
        """
        if key is None:
            return
        with self._lock:
            if key.max_requests is not None and self._open[key.name] >= key.max_requests:
                msg = f"the key {key.name!r} has {key.max_requests} requests open; wait for one."
                raise ServingError(msg, kind="limited", retry_after=1)
            if key.requests_per_minute is not None:
                self._take_token(key, key.requests_per_minute)
            self._open[key.name] += 1

    def leave(self, key: ApiKey | None) -> None:
        """Count that a request has ended.

        Args:
            key: of the request.
        """
        if key is not None:
            with self._lock:
                self._open[key.name] -= 1

    def _take_token(self, key: ApiKey, rate: int) -> None:
        now, name = self._clock(), key.name
        grown = (now - self._filled[name]) * rate / _MINUTE
        self._tokens[name] = min(float(rate), self._tokens[name] + grown)
        self._filled[name] = now
        if self._tokens[name] < 1:
            wait = math.ceil((1 - self._tokens[name]) * _MINUTE / rate)
            msg = f"the key {name!r} has sent its {rate} requests of this minute. Wait {wait} s."
            raise ServingError(msg, kind="limited", retry_after=wait)
        self._tokens[name] -= 1
