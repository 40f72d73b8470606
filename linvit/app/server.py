"""The page's server: Python's own, for this machine alone.

Everything that it answers is made here: three files, JSON and pictures. A browser is told to fetch nothing from
elsewhere, and pages of other sites cannot use the server: it answers to the name of this machine alone.
"""

import io
import json
import re
import sys
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from linvit.app.cost import SIZES, measure_cost
from linvit.app.uploads import MOST_BYTES, SAMPLES, Uploads, read_sample, read_upload
from linvit.app.viewer import KINDS, Models

__all__ = ["make_server"]

HOSTS = ("127.0.0.1", "localhost", "[::1]")
PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
MOST_JSON = 10_000


def make_server(models: Models, port: int = 0) -> ThreadingHTTPServer:
    """Return a server on the loopback address, which ``serve_forever()`` runs.

    Args:
        models: What it shows.
        port: Where it listens; 0 takes any free one (``server.server_address`` has it).

    Raises:
        OSError: The port is taken.
    """
    uploads = Uploads()

    class Handler(_Handler):
        pass

    Handler.models, Handler.uploads = models, uploads
    return _Server(("127.0.0.1", port), Handler)


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing when a browser hangs up in the middle, as it does when a tab is closed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    models: Models
    uploads: Uploads
    protocol_version = "HTTP/1.1"
    server_version = "linvit"
    sys_version = ""
    timeout = 60

    def do_GET(self) -> None:
        """Answer with a file of the page, a sample, or what there is to choose from."""
        path = urlsplit(self.path).path
        if not self._is_local():
            return
        if path in PAGE:
            name, kind = PAGE[path]
            self._send(files("linvit.app").joinpath("page", name).read_bytes(), kind)
        elif path == "/api/start":
            self._answer(self._start)
        elif found := re.fullmatch(r"/api/image/([\w-]+)", path):
            self._answer(lambda: self._picture(found[1]))
        else:
            self._fail(HTTPStatus.NOT_FOUND, f"there is nothing at {path}")

    def do_POST(self) -> None:
        """Take an image, load a model, predict, look, or measure."""
        if not self._is_local():
            return
        path = urlsplit(self.path).path
        calls: dict[str, Callable[[dict[str, Any]], Any]] = {
            "/api/sample": self._sample,
            "/api/model": self._model,
            "/api/predict": self._predict,
            "/api/look": self._look,
            "/api/cost": self._cost,
        }
        most = MOST_BYTES if path == "/api/image" else MOST_JSON
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            self._fail(HTTPStatus.LENGTH_REQUIRED, "the request does not say how long it is")
        elif int(length) > most:
            megabytes = int(length) / 2**20
            self._fail(HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                       f"the file has {megabytes:.0f} MB; at most {MOST_BYTES // 2**20} MB are taken")  # fmt: skip
        elif path == "/api/image":
            content = self.rfile.read(int(length))
            self._answer(lambda: self._upload(content))
        elif path in calls:
            body = self.rfile.read(int(length))
            self._answer(lambda: calls[path](_object(body)))
        else:
            self._fail(HTTPStatus.NOT_FOUND, f"there is nothing at {path}")

    def _start(self) -> dict[str, Any]:
        models = [{"id": name, **_described(viewer)} for name, viewer in self.models.shown.items()]
        return {"models": models, "samples": SAMPLES, "kinds": KINDS, "sizes": [SIZES[0], SIZES[-1], SIZES.step]}

    def _upload(self, content: bytes) -> dict[str, Any]:
        image, note = read_upload(content)
        return {"image": self.uploads.add(image), "width": image.width, "height": image.height, "note": note}

    def _sample(self, asked: dict[str, Any]) -> dict[str, Any]:
        image = read_sample(_text(asked, "name"))
        return {"image": self.uploads.add(image), "width": image.width, "height": image.height, "note": ""}

    def _picture(self, name: str) -> bytes:
        file = io.BytesIO()
        self.uploads.get(name).save(file, format="PNG", compress_level=1)
        return file.getvalue()

    def _model(self, asked: dict[str, Any]) -> dict[str, Any]:
        with self.models.lock:
            name, viewer = self.models.add(_text(asked, "path"))
        return {"id": name, **_described(viewer)}

    def _predict(self, asked: dict[str, Any]) -> dict[str, Any]:
        image = self.uploads.get(_text(asked, "image"))
        with self.models.lock:  # looking into a model is for one at a time
            return self.models.get(_text(asked, "model")).predict(image)

    def _look(self, asked: dict[str, Any]) -> dict[str, Any]:
        name = _text(asked, "image")
        image = self.uploads.get(name)
        at = (_number(asked, "x"), _number(asked, "y"))
        with self.models.lock:
            return {"layers": self.models.get(_text(asked, "model")).look(name, image, at, _text(asked, "kind"))}

    def _cost(self, asked: dict[str, Any]) -> dict[str, Any]:
        with self.models.lock:
            return measure_cost(int(_number(asked, "size")))

    def _is_local(self) -> bool:
        """Refuse what a page of another site asks for, under its own name or through a name that leads here."""
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        origin = self.headers.get("Origin")
        if host in HOSTS and (origin is None or urlsplit(origin).netloc == self.headers.get("Host")):
            return True
        self._fail(HTTPStatus.FORBIDDEN, "this server answers to its own page alone")
        return False

    def _answer(self, call: Callable[[], Any]) -> None:
        try:
            found = call()
        except (ValueError, OSError, ImportError, RuntimeError) as error:
            self._fail(HTTPStatus.BAD_REQUEST, " ".join(str(error).split()) or type(error).__name__)
        except Exception as error:
            print(f"linvit: error: {error!r} in answer to {self.path}", file=sys.stderr)
            self._fail(HTTPStatus.INTERNAL_SERVER_ERROR, f"this went wrong: {type(error).__name__}")
        else:
            if isinstance(found, bytes):
                self._send(found, "image/png")
            else:
                self._send(json.dumps(found).encode(), "application/json")

    def _fail(self, status: HTTPStatus, message: str) -> None:
        self.close_connection = True  # what was sent may not have been read
        self._send(json.dumps({"error": message}).encode(), "application/json", status)

    def _send(self, content: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing about requests."""


def _described(viewer: Any) -> dict[str, Any]:
    return {"name": viewer.name, "task": viewer.task}


def _object(body: bytes) -> dict[str, Any]:
    found = json.loads(body)
    if not isinstance(found, dict):
        raise ValueError("the request is no JSON object")
    return found


def _text(asked: dict[str, Any], key: str) -> str:
    if not isinstance(asked.get(key), str):
        raise ValueError(f"the request has no {key}")
    return asked[key]


def _number(asked: dict[str, Any], key: str) -> float:
    if not isinstance(asked.get(key), int | float) or isinstance(asked[key], bool):
        raise ValueError(f"the request has no number {key}")
    return asked[key]
