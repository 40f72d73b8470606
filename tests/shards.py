"""Class folders packed as tar shards, and a small web server that gives them out, or breaks off."""

import io
import re
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SHARDS = 2


def pack(photos: Path, out: Path, numbers: bool = False) -> Path:
    """Write each part of a folder as two shards; classes by name, or by their numbers beside ``classes.txt``."""
    out.mkdir()
    classes: list[str] = []
    for part in sorted(photos.iterdir()):
        classes = sorted(folder.name for folder in part.iterdir())
        paths = sorted(path for path in part.rglob("*.*") if path.is_file())
        for shard in range(SHARDS):
            with tarfile.open(out / f"{part.name}-{shard}.tar", "w") as archive:
                for number in range(shard * len(paths) // SHARDS, (shard + 1) * len(paths) // SHARDS):
                    path = paths[number]
                    label = str(classes.index(path.parent.name)) if numbers else path.parent.name
                    for name, content in (
                        (f"{number:05d}{path.suffix}", path.read_bytes()),
                        (f"{number:05d}.cls", label.encode()),
                    ):
                        info = tarfile.TarInfo(name)
                        info.size = len(content)
                        archive.addfile(info, io.BytesIO(content))
    if numbers:
        (out / "classes.txt").write_text("\n".join(classes))
    return out


class Served:
    """A folder behind http.

    Attributes:
        address: Its URL.
        asked: Path and range of each request so far.
        broken: How many of the next answers break off in their middle.
        ranges: Whether it gives out parts of files.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.asked: list[tuple[str, str]] = []
        self.broken = 0
        self.ranges = True


@contextmanager
def serve(folder: Path) -> Iterator[Served]:
    """Give out the files of a folder."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # so that connections stay open
        disable_nagle_algorithm = True  # or each answer waits 40 ms for an acknowledgement

        def log_message(self, *args) -> None:
            """Stay quiet."""

        def do_GET(self) -> None:
            path = folder / self.path.lstrip("/").split("?")[0]
            wanted = self.headers.get("Range", "")
            served.asked.append((self.path, wanted))
            if not path.is_file():
                self.reply(404, b"")
                return
            content = path.read_bytes()
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
            if found is None or not served.ranges:
                self.reply(200, content)
                return
            start, end = int(found[1]), int(found[2]) + 1
            self.reply(206, content[start:end], f"bytes {start}-{min(end, len(content)) - 1}/{len(content)}")

        def reply(self, status: int, content: bytes, part: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            if part:
                self.send_header("Content-Range", part)
            self.end_headers()
            if served.broken:
                served.broken -= 1
                content = content[: len(content) // 2]
                self.close_connection = True
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client may hang up on what it did not want
    served = Served(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
