"""A server on this machine that takes models as the Hugging Face hub does, and fails where a test wants it to."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_thisIsNoRealTokenOfAnybody"


@dataclass
class Hub:
    """What the server holds.

    Attributes:
        endpoint: Its address.
        repositories: Files by name, of each repository.
        objects: Large files that were uploaded, by checksum.
        commits: How many commits there were.
        failing: Part of a path whose requests are answered with ``status``.
        status: See there.
    """

    endpoint: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0
    failing: str | None = None
    status: int = 403


@contextmanager
def serve() -> Iterator[Hub]:
    """Run the server."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            """Stay quiet."""

        def handle_any(self) -> None:
            path = self.path.split("?")[0]
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if hub.failing and hub.failing in path:
                self.reply(hub.status, {"error": f"refused for {self.headers.get('Authorization')}"})
            elif self.command in ("GET", "HEAD"):
                self.get(path)
            elif path.startswith("/lfs/"):
                hub.objects[path.rpartition("/")[2]] = body
                self.reply(200, {})
            elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.reply(401, {"error": "Invalid credentials"})
            else:
                self.change(path, body)

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

        def get(self, path: str) -> None:
            parts = path.strip("/").split("/")
            if parts[:2] == ["api", "models"] and (repo := "/".join(parts[2:4])) in hub.repositories:
                names = [{"rfilename": name} for name in hub.repositories[repo]]
                self.reply(200, {"_id": "0", "id": repo, "modelId": repo, "sha": COMMIT, "siblings": names})
            elif "resolve" in parts and parts[-1] in hub.repositories.get("/".join(parts[:2]), {}):
                self.reply(200, hub.repositories["/".join(parts[:2])][parts[-1]])
            else:
                self.reply(404, {"error": "not found"}, "RepoNotFound")

        def change(self, path: str, body: bytes) -> None:
            parts = path.strip("/").split("/")
            if path == "/api/validate-yaml":
                self.reply(200, {"errors": [], "warnings": []})
            elif path in ("/api/repos/create", "/api/repos/delete"):
                asked = json.loads(body)
                repo = f"{asked['organization']}/{asked['name']}"
                if path.endswith("delete"):
                    del hub.repositories[repo]
                elif repo in hub.repositories:
                    self.reply(409, {"error": "You already created this model repo"})
                    return
                else:
                    hub.repositories[repo] = {}
                self.reply(200, {"url": f"{hub.endpoint}/{repo}", "name": repo})
            elif "preupload" in parts:
                files = [
                    {"path": each["path"], "shouldIgnore": False}
                    | {"uploadMode": "lfs" if each["path"].endswith((".safetensors", ".png")) else "regular"}
                    for each in json.loads(body)["files"]
                ]
                self.reply(200, {"files": files})
            elif path.endswith("/objects/batch"):
                objects = [
                    each | {"actions": {"upload": {"href": f"{hub.endpoint}/lfs/{each['oid']}"}}}
                    for each in json.loads(body)["objects"]
                ]
                self.reply(200, {"transfer": "basic", "objects": objects})
            elif "commit" in parts:
                files = hub.repositories["/".join(parts[2:4])]
                for line in map(json.loads, body.decode().splitlines()):
                    value = line["value"]
                    if line["key"] == "file":
                        files[value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        files[value["path"]] = hub.objects[value["oid"]]
                hub.commits += 1
                self.reply(
                    200, {"success": True, "commitOid": COMMIT, "commitUrl": f"{hub.endpoint}/{parts[2]}/commit"}
                )
            else:
                self.reply(404, {"error": "not found"})

        def reply(self, status: int, what: Any, code: str = "") -> None:
            content = what if isinstance(what, bytes) else json.dumps(what).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header(
                "Content-Type", "application/octet-stream" if isinstance(what, bytes) else "application/json"
            )
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            if code:
                self.send_header("X-Error-Code", code)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
