"""Files behind http: read in parts, by byte ranges, and asked for again when a connection breaks."""

import functools
import io
import os
import time
from typing import Any
from urllib.parse import urlsplit

from linvit.data.images import why_unreadable

__all__ = ["RemoteFile", "fetch", "is_url", "public"]

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before a broken connection is tried again."""

TIMEOUT = (10, 60)
"""Seconds to wait for a connection, and for the next bytes."""

CONNECTIONS = 16


def is_url(path: object) -> bool:
    """Return whether a path is one for http."""
    return str(path).startswith(("http://", "https://"))


def public(url: str) -> str:
    """Return a URL without user, password and query, which may hold keys: what may be shown."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def fetch(url: str, start: int, size: int) -> Any:
    """Return the response that holds ``size`` bytes from ``start`` on, or fewer where the file ends.

    Raises:
        FileNotFoundError: There is no such file.
        PermissionError: The server does not give it out.
        ValueError: The server does not give out parts of files, or the file ends before.
        OSError: The server did not answer, asked again and again.
    """
    import requests

    ranges = {"Range": f"bytes={start}-{start + size - 1}", "Accept-Encoding": "identity"}
    problem = ""
    for wait in (0.0, *WAITS):
        time.sleep(wait)
        try:
            # Without stream, a server that knows no ranges would send everything before it is found out.
            with _session(os.getpid()).get(url, headers=ranges, timeout=TIMEOUT, stream=True) as response:
                if response.status_code == 206:
                    _ = response.content
                    return response
        except requests.RequestException as error:
            problem = why_unreadable(_root(error), empty=False)
            continue
        problem = f"{response.status_code} {response.reason}"
        if response.status_code in (404, 410):
            raise FileNotFoundError(f"there is nothing at {public(url)} ({problem})")
        if response.status_code in (401, 403):
            raise PermissionError(f"{public(url)} is not given out ({problem})")
        if response.status_code == 416:
            raise ValueError(f"{public(url)} ends before byte {start}: it is empty, or not what it was")
        if response.status_code == 200:
            raise ValueError(
                f"the server of {public(url)} gives out whole files only (no byte ranges): copy the shards to a disk"
            )
    raise OSError(f"{public(url)} cannot be read, tried {len(WAITS) + 1} times: {problem}")


@functools.lru_cache(maxsize=1)
def _session(process: int) -> Any:
    """Return what keeps connections open; a forked process must not go on with those of its parent."""
    import requests

    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=CONNECTIONS))
    return session


def _root(error: BaseException) -> Any:
    while error.__context__ is not None:
        error = error.__context__
    return error


class RemoteFile(io.RawIOBase):
    """A file behind http, to be read anywhere in it; wrap it in :class:`io.BufferedReader`.

    Args:
        url: Where it is.

    Attributes:
        size: Bytes in it.
        version: What the server tells it from earlier versions by; may be empty.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self._at = 0
        headers = fetch(url, 0, 1).headers
        self.size = int(headers["Content-Range"].rpartition("/")[2])
        self.version: str = headers.get("ETag") or headers.get("Last-Modified") or ""

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the place of the next byte to read."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fetch the next bytes."""
        count = min(len(buffer), self.size - self._at)
        if count <= 0:
            return 0
        buffer[:count] = fetch(self._url, self._at, count).content
        self._at += count
        return count
