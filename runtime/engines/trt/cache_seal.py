"""Keyed hashes (HMAC) over the files of a cache: they detect files that this cache did not write.

An engine is code. The key is random, made with the cache, and readable by its owner only; an engine from elsewhere, or
one that was altered on the disk, does not carry the right hash.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path

__all__ = ["Seal", "UnsealedError", "make_seal", "read_seal"]

SECRET = "secret.key"
SECRET_BYTES = 32


class UnsealedError(Exception):
    """Something in a cache that cannot be trusted, and why."""


class Seal:
    """Makes and checks keyed hashes (HMAC-SHA256)."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def hash(self, *parts: bytes) -> str:
        """The keyed hash of `parts`, which another division of the same bytes does not have."""
        keyed = hmac.new(self._secret, digestmod=hashlib.sha256)
        for part in parts:
            keyed.update(len(part).to_bytes(8, "big"))
            keyed.update(part)
        return keyed.hexdigest()

    def check(self, given: object, parts: Sequence[bytes]) -> None:
        """Raises UnsealedError unless `given` is the keyed hash of `parts`."""
        if not isinstance(given, str) or not hmac.compare_digest(given.encode(), self.hash(*parts).encode()):
            raise UnsealedError("its keyed hash differs: it was altered, or another cache made it")


def read_seal(folder: Path) -> Seal:
    """The seal of the cache in `folder`; UnsealedError if its secret is absent, cut or not ours alone."""
    path = folder / SECRET
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise UnsealedError(f"{path} cannot be read ({error.strerror})") from None
    with os.fdopen(descriptor, "rb") as file:
        _require_private(path, os.fstat(descriptor))
        secret = file.read(SECRET_BYTES + 1)
    if len(secret) != SECRET_BYTES:
        raise UnsealedError(f"{path} does not hold {SECRET_BYTES} bytes")
    return Seal(secret)


def make_seal(folder: Path) -> Seal:
    """A new secret in `folder` in place of any other, and its seal. Raises OSError; the caller keeps others away."""
    path = folder / SECRET
    temporary = folder / f".{SECRET}.{os.getpid()}.part"
    temporary.unlink(missing_ok=True)
    secret = secrets.token_bytes(SECRET_BYTES)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secret)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return Seal(secret)


def _require_private(path: Path, status: os.stat_result) -> None:
    """Who can write the secret can make any engine pass, and who can read it too."""
    if not stat.S_ISREG(status.st_mode):
        raise UnsealedError(f"{path} is not a plain file")
    if os.name == "posix" and (status.st_uid != os.geteuid() or status.st_mode & 0o077):
        raise UnsealedError(f"{path} is not readable by its owner alone (mode {stat.S_IMODE(status.st_mode):o})")
