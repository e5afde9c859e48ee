"""A Hugging Face hub in miniature, on this machine, for tests of the hub path.

    with HubServer(root) as hub:
        run(env={"HF_ENDPOINT": hub.url, "HF_HOME": somewhere})

`root` has `datasets/<org>/<name>/...` and `models/<name>/...` or `models/<org>/<name>/...`. Every
repository has the branch `main` at the commit `COMMIT`.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" * 6 + "c0ff"
REVISIONS = ("main", COMMIT)

_API = re.compile(r"/api/(models|datasets)/(.+?)(?:/(revision|tree)/([^/]+)/?.*)?")
_RESOLVE = re.compile(r"/(?:(datasets)/)?(.+?)/resolve/([^/]+)/(.+)")


class HubServer:
    """Serves the repositories below `root` on 127.0.0.1 until the context is left."""

    def __init__(self, root: Path, *, gated: tuple[str, ...] = ()) -> None:
        """Take repositories from `root`; those named in `gated` give no files."""
        self.root = root
        self.gated = gated
        self.requests: list[str] = []
        """`METHOD path` of everything asked for."""
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        """What HF_ENDPOINT is to be."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubServer:
        """Start serving."""
        hub = self

        class Handler(_Handler):
            owner = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop serving: connections are refused from now on."""
        self.stop()

    def stop(self) -> None:
        """Stop serving; twice does no harm."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def files_of(self, kind: str, repo_id: str) -> dict[str, Path] | None:
        """Return the files of a repository by name; None where there is none."""
        folder = self.root / kind / repo_id
        if not folder.is_dir() or ".." in repo_id:
            return None
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        return {path.relative_to(folder).as_posix(): path for path in files}


class _Handler(BaseHTTPRequestHandler):
    owner: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.owner.requests.append(f"{self.command} {path}")
        if match := _API.fullmatch(path):
            self._api(*match.groups())
        elif match := _RESOLVE.fullmatch(path):
            self._resolve(match[1] or "models", *match.groups()[1:])
        else:
            self._error(404, "EntryNotFound")

    do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

    def _api(self, kind: str, repo_id: str, what: str | None, revision: str | None) -> None:
        files = self.owner.files_of(kind, repo_id)
        if files is None:
            self._error(401, "RepoNotFound")
        elif revision not in (None, *REVISIONS):
            self._error(404, "RevisionNotFound")
        elif what == "tree":
            entries = [
                {"type": "file", "oid": _oid(path), "size": path.stat().st_size, "path": name}
                for name, path in files.items()
            ]
            self._json(entries)
        else:
            siblings = [{"rfilename": name} for name in files]
            info = {"_id": repo_id, "id": repo_id, "sha": COMMIT, "siblings": siblings}
            self._json(info | {"private": False, "gated": False, "downloads": 0, "tags": []})

    def _resolve(self, kind: str, repo_id: str, revision: str, name: str) -> None:
        files = self.owner.files_of(kind, repo_id)
        if files is None:
            self._error(401, "RepoNotFound")
        elif repo_id in self.owner.gated:
            self._error(401, "GatedRepo")
        elif revision not in REVISIONS:
            self._error(404, "RevisionNotFound")
        elif name not in files:
            self._error(404, "EntryNotFound")
        else:
            self._file(files[name])

    def _file(self, path: Path) -> None:
        data = path.read_bytes()
        headers = {"ETag": f'"{_oid(path)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self._send(200, data, headers)
            return
        first, last = int(asked[1]), int(asked[2] or len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self._send(206, data[first : last + 1], headers)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str) -> None:
        body = json.dumps({"error": code}).encode()
        self._send(status, body, {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")  # so that nothing is answered after `stop`
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing on stderr: tests read it."""


def _oid(path: Path) -> str:
    """Name a file's content as git does."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
