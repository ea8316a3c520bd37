"""API keys: a file of hashes, and the door that asks for one of them.

    # name  sha256 of the key
    ci      5e88…

A key is 256 random bits, so a plain hash of it can not be guessed from. Rotation is rewriting the file: it is read
again when it changed, and one that can not be read changes nothing.
"""

import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from pathlib import Path

from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Receive, Scope, Send

from serve.api.errors import Problem
from serve.api.limits import Caller
from serve.api.noted import note

PREFIX = "dca_"
LOOK_AGAIN_SECONDS = 1.0

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HASH = re.compile(r"[0-9a-f]{64}")
_log = logging.getLogger(__name__)


class KeyFileError(ValueError):
    """The file of keys can not be used; the message names the line."""


def hash_key(key: str) -> str:
    """What the file holds of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def add_new_key(file: Path, name: str) -> str:
    """Make a key, add its hash to the file (made when it is not there, readable by its owner alone), and return it.

    Raises:
        KeyFileError: the name is not one, or taken; or the file holds something else.
    """
    if _NAME.fullmatch(name) is None:
        raise KeyFileError(f"{name!r} is no name for a key: use up to 64 letters, digits, dots, dashes and underscores")
    if file.exists() and name in read_keys(file).values():
        raise KeyFileError(f"{file} has a key named {name!r}; remove its line first, or choose another name")
    key = PREFIX + secrets.token_urlsafe(32)
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "a", encoding="utf-8") as lines:
        lines.write(f"{name} {hash_key(key)}\n")
    return key


def read_keys(file: Path) -> dict[str, str]:
    """The file's hashes and the names they have.

    Raises:
        KeyFileError: it can not be read, or a line is not a name and a hash.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KeyFileError(f"the file of API keys {file} can not be read: {error}") from error
    keys: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or _NAME.fullmatch(words[0]) is None or _HASH.fullmatch(words[1]) is None:
            raise KeyFileError(
                f"{file}, line {number}: not a name and the sha256 of a key; "
                "`deepcode-serve --api-keys FILE --new-key NAME` writes such lines"
            )
        keys[words[1]] = words[0]
    return keys


class Door:
    """Knows who a key belongs to. Without a file everybody is let in, as one caller."""

    def __init__(self, file: Path | None, requests_per_minute: float = 0.0, tokens_per_minute: float = 0.0) -> None:
        """
        Args:
            file: of hashes; None asks for no key.
            requests_per_minute: for each key; 0 for no limit.
            tokens_per_minute: for each key; 0 for no limit.

        Raises:
            KeyFileError: the file can not be used.
        """
        self._file = file
        self._limits = (requests_per_minute, tokens_per_minute)
        self._everybody = Caller("everybody", "", *self._limits)
        self._callers: dict[str, Caller] = {}
        self._seen = self._stamp()
        self._look_again_at = 0.0
        if file is not None:
            self._let_in(read_keys(file))

    def caller(self, authorization: str | None) -> Caller:
        """Who sends this Authorization header.

        Raises:
            Problem: 401, it holds no key that is let in.
        """
        if self._file is None:
            return self._everybody
        self._read_again_if_changed(self._file)
        scheme, _, key = (authorization or "").partition(" ")
        presented = hash_key(key.strip())
        found = None
        for known, caller in self._callers.items():  # all of them, so that time tells nothing
            if hmac.compare_digest(known, presented):
                found = caller
        if found is None or scheme.lower() != "bearer":
            raise Problem(
                "unauthorized",
                401,
                "An API key is needed",
                "Send `Authorization: Bearer KEY` with a key this server knows.",
                {"WWW-Authenticate": "Bearer"},
            )
        return found

    def _let_in(self, keys: dict[str, str]) -> None:
        """These keys and no others; a key that stays keeps what it has used."""
        self._callers = {
            known: self._callers.get(known) or Caller(name, known, *self._limits) for known, name in keys.items()
        }

    def _read_again_if_changed(self, file: Path) -> None:
        now = time.monotonic()
        if now < self._look_again_at:
            return
        self._look_again_at = now + LOOK_AGAIN_SECONDS
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._let_in(read_keys(file))
        except KeyFileError as error:
            _log.error("%s; the keys stay as they were", error)

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            found = self._file.stat() if self._file is not None else None
        except OSError:
            return None
        return None if found is None else (found.st_mtime_ns, found.st_size, found.st_ino)


class Authentication(ASGIMiddleware):
    """Every route asks for a key but those with `exclude_from_auth=True`; the handler finds the caller in `auth`."""

    scopes = (ScopeType.HTTP, ScopeType.ASGI)
    exclude_opt_key = "exclude_from_auth"

    def __init__(self, door: Door) -> None:
        """`door`: who is let in."""
        self._door = door

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Pass on what a known caller sends."""
        header = next((value for name, value in scope["headers"] if name == b"authorization"), None)
        caller = self._door.caller(None if header is None else header.decode("latin-1"))
        scope["auth"] = caller
        note(caller=caller.name)
        await next_app(scope, receive, send)
