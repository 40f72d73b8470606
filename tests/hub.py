"""A small stand-in for the Hugging Face hub on this machine, for tests of downloads."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serve_hub(repo: str, files: dict[str, bytes], announced: dict[str, bytes] | None = None) -> Iterator[str]:
    """Serve ``files`` as the repository ``repo``; give the endpoint's address.

    ``announced`` replaces contents that the listing takes its checksums from, to play a damaged transfer.
    """
    announced = files | (announced or {})

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args) -> None:
            """Stay quiet."""

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = self.path.split("?")[0]
            if path == f"/api/models/{repo}":
                siblings = [
                    {
                        "rfilename": name,
                        "size": len(content),
                        "lfs": {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 9},
                    }
                    for name, content in announced.items()
                ]
                record = {"_id": "0", "id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings}
                self.reply(json.dumps(record).encode(), "application/json", body)
            elif path.startswith(f"/{repo}/resolve/") and path.rsplit("/", 1)[-1] in files:
                self.reply(files[path.rsplit("/", 1)[-1]], "application/octet-stream", body)
            else:
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()

        def reply(self, content: bytes, kind: str, body: bool) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
