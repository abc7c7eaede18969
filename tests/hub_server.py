"""A small Hub on this machine, for huggingface_hub's own client: it stores bytes, checks hashes, and can fail.

It speaks what an upload and a download need: create, validate-yaml, preupload, the batch, upload and verify calls of
large files, commit, listings, resolve. A commit is taken whole or not at all, as on the Hub.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = 10_000
"""Bytes from which a file is a large one here."""


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repository:
    """One repository: its files after each commit."""

    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    @property
    def head(self) -> tuple[str, dict[str, bytes]]:
        return self.commits[-1] if self.commits else ("0" * 40, {})

    def commit(self, files: dict[str, bytes]) -> str:
        names = "".join(f"{name}{git_hash(content)}" for name, content in sorted(files.items()))
        sha = hashlib.sha1(f"{len(self.commits)}{names}".encode()).hexdigest()
        self.commits.append((sha, files))
        return sha


class LocalHub:
    """The state of the server, which tests look at.

    Attributes:
        repositories: By name.
        large_files: Content by SHA-256.
        requests: ``METHOD path`` of every request.
        failures: ``{part of "METHOD path": [status, ...]}``: the next requests that match fail so; the status 0 keeps
            half of an uploaded file, as a broken disk would.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.failures: dict[str, list[int]] = {}
        self.url = ""

    def files(self, repo_id: str) -> dict[str, bytes]:
        return self.repositories[repo_id].head[1]

    def next_failure(self, request: str) -> int | None:
        for part, statuses in self.failures.items():
            if part in request and statuses:
                return statuses.pop(0)
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def handle_any(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        request = f"{self.command} {path}"
        self.hub.requests.append(request)
        body = self._read_body()
        status = self.hub.next_failure(request)
        if status:
            self._answer(status, {"error": "injected"})
        elif path.startswith("large/"):
            self._store_large(path.removeprefix("large/"), body[: len(body) // 2] if status == 0 else body)
        elif path == "api/repos/create":
            self._create(json.loads(body))
        elif path == "api/validate-yaml":
            self._answer(200, {"warnings": [], "errors": []})
        elif path.startswith("api/models/"):
            self._api(path.removeprefix("api/models/"), body)
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        elif path == "verify":
            self._verify(json.loads(body))
        else:
            self._resolve(path)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815  names of the base class

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(
        self, status: int, content: Any = None, headers: dict[str, str] | None = None, data: bytes = b""
    ) -> None:
        if content is not None:
            data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _create(self, content: dict[str, Any]) -> None:
        repo_id = f"{content['organization'] or 'somebody'}/{content['name']}"
        url = {"url": f"{self.hub.url}/{repo_id}"}
        if repo_id in self.hub.repositories:
            self._answer(409, url | {"error": "You already created this model repo"})
            return
        self.hub.repositories[repo_id] = Repository()
        self._answer(200, url)

    def _api(self, path: str, body: bytes) -> None:
        user, name, *rest = path.split("/")
        repository = self.hub.repositories.get(f"{user}/{name}")
        if repository is None:
            self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return
        sha, files = repository.head
        action = rest[0] if rest else "revision"
        if action == "preupload":
            modes = {item["path"]: self._mode(item, files) for item in json.loads(body)["files"]}
            self._answer(200, {"files": [{"path": path, **mode} for path, mode in modes.items()]})
        elif action == "commit":
            self._commit(repository, f"{user}/{name}", body)
        elif action == "tree" and len(rest) > 2:
            self._answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        elif action == "tree":
            self._answer(
                200, [{"type": "file", "path": p, "size": len(c), "oid": git_hash(c)} for p, c in files.items()]
            )
        else:
            siblings = [{"rfilename": name} for name in files]
            self._answer(200, {"id": f"{user}/{name}", "sha": sha, "siblings": siblings, "tags": []})

    @staticmethod
    def _mode(item: dict[str, Any], files: dict[str, bytes]) -> dict[str, Any]:
        old = files.get(item["path"])
        mode = "lfs" if item["size"] >= LARGE else "regular"
        oid = None if old is None else hashlib.sha256(old).hexdigest() if mode == "lfs" else git_hash(old)
        return {"uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def _batch(self, content: dict[str, Any]) -> None:
        objects = []
        for item in content["objects"]:
            actions = {
                "upload": {"href": f"{self.hub.url}/large/{item['oid']}"},
                "verify": {"href": f"{self.hub.url}/verify"},
            }
            known = item["oid"] in self.hub.large_files
            objects.append({**item} if known else {**item, "actions": actions})
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _store_large(self, oid: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            self._answer(400, {"error": "the content has another SHA-256"})
            return
        self.hub.large_files[oid] = body
        self._answer(200)

    def _verify(self, content: dict[str, Any]) -> None:
        stored = self.hub.large_files.get(content["oid"])
        self._answer(200 if stored is not None and len(stored) == content["size"] else 422, {})

    def _commit(self, repository: Repository, repo_id: str, body: bytes) -> None:
        files = dict(repository.head[1])
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.hub.large_files:
                    self._answer(422, {"error": f"{value['path']} was never uploaded"})
                    return
                files[value["path"]] = self.hub.large_files[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        sha = repository.commit(files)
        self._answer(200, {"commitUrl": f"{self.hub.url}/{repo_id}/commit/{sha}", "commitOid": sha, "success": True})

    def _resolve(self, path: str) -> None:
        user, name, _, _, *parts = path.split("/")
        repository = self.hub.repositories.get(f"{user}/{name}")
        if repository is None:
            self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return
        sha, files = repository.head
        content = files.get("/".join(parts))
        if content is None:
            self._answer(404, None, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
            return
        etag = hashlib.sha256(content).hexdigest() if len(content) >= LARGE else git_hash(content)
        self._answer(200, None, {"X-Repo-Commit": sha, "ETag": f'"{etag}"'}, content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def running_hub() -> Iterator[LocalHub]:
    """Serve a Hub on a free port of this machine."""
    hub = LocalHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
