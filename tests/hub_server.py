"""A server that speaks as much of the hub's protocol as its client uses to create, list, read and write models.

Large files go through git LFS's batch interface; anything else is answered by 404. Every request is recorded.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from huggingface_hub import constants, file_download

LICENCES = {"cc-by-4.0", "apache-2.0", "mit", "unknown", "other"}
LFS_ENDINGS = (".pth", ".safetensors")
TOKEN = "hf_of_the_tests"


@dataclass
class Repository:
    """Files by path of each commit, and the commit of each branch."""

    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        parts = [f"{len(self.commits)}".encode(), *(f"{n}{_oid(c)}".encode() for n, c in sorted(files.items()))]
        self.branches[branch] = hashlib.sha1(b"".join(parts)).hexdigest()
        self.commits[self.branches[branch]] = files
        return self.branches[branch]

    def find(self, revision: str) -> str | None:
        commit = self.branches.get(revision, revision)
        return commit if commit in self.commits else None

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.branches["main"]]


def _oid(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _blob(content: bytes) -> str:
    """git's name of a file."""
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


class Hub:
    """State of the server.

    Attributes:
        endpoint: its address.
        repositories: by owner/name.
        objects: contents of LFS by SHA-256.
        requests: method and path of every request so far.
        status: answer every request with this status, if it is not 0.
        page: answer every request with this page, if it is not empty.
        damages: change a byte of every download.
    """

    def __init__(self) -> None:
        self.endpoint = ""
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.status = 0
        self.page = b""
        self.damages = False

    def add(self, name: str, files: dict[str, bytes], branch: str = "main", **properties: bool) -> str:
        """Commit files to a repository, made if it is missing; return the commit's hash."""
        repository = self.repositories.setdefault(name, Repository(**properties))
        return repository.commit(branch, {".gitattributes": b"*.pth filter=lfs\n", **files})


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()

    class Bound(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def connect(hub: Hub, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Set what huggingface_hub reads from its variables when it is imported, and the token that may write."""
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)  # of versions before 1
    for name, value in {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": False,
        # the client prefers a storage of another protocol for large files
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


class _Refusal(Exception):
    """Ends a request with a status, and the hub's code and message of the error."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(status)
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Hub

    def log_message(self, *_: object) -> None:
        pass

    def _handle(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self.content = self.rfile.read(length)
        path = urlsplit(self.path).path
        self.state.requests.append(f"{self.command} {unquote(path)}")
        try:
            if self.state.status:
                raise _Refusal(self.state.status, message="out of order")
            if self.state.page:
                return self._send(200, self.state.page)
            for method, pattern, answer in ROUTES:
                if method == self.command.replace("HEAD", "GET") and (match := re.fullmatch(pattern, path)):
                    return answer(self, *map(unquote, match.groups()))
            raise _Refusal(404, message=f"the hub of the tests has no {self.command} {path}")
        except _Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            self._send(refusal.status, json.dumps({"error": refusal.message}).encode(), headers)

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    @property
    def _may_write(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _writer(self) -> None:
        if not self._may_write:
            raise _Refusal(401, message="Invalid username or password.")

    def _repository(self, name: str) -> Repository:
        found = self.state.repositories.get(name)
        if found is None or (found.private and not self._may_write):
            # as the hub: without a token one does not learn which repositories there are
            raise (
                _Refusal(404, "RepoNotFound", "Repository not found")
                if self._may_write
                else _Refusal(401, "RepoNotFound", "Invalid username or password.")
            )
        return found

    def _files(self, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
        repository = self._repository(name)
        commit = repository.find(revision)
        if commit is None:
            raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit, repository.commits[commit]

    def info(self, name: str, revision: str = "main") -> None:
        commit, files = self._files(name, revision)
        repository = self._repository(name)
        siblings = [{"rfilename": path} for path in files]
        self._json({"id": name, "sha": commit, "private": repository.private, "tags": [], "siblings": siblings})

    def tree(self, name: str, revision: str) -> None:
        _, files = self._files(name, revision)
        entries = []
        for path, content in files.items():
            entry = {"type": "file", "path": path, "size": len(content), "oid": _blob(content)}
            if path.endswith(LFS_ENDINGS):
                entry["lfs"] = {"oid": _oid(content), "size": len(content), "pointerSize": 130}
            entries.append(entry)
        self._json(entries)

    def resolve(self, name: str, revision: str, path: str) -> None:
        commit, files = self._files(name, revision)
        if self._repository(name).gated and not self._may_write:
            raise _Refusal(403, "GatedRepo", "Access to this model is restricted.")
        if path not in files:
            raise _Refusal(404, "EntryNotFound", "Entry not found")
        content = files[path]
        sent = content[:-1] + bytes([content[-1] ^ 1]) if self.state.damages else content
        etag = _oid(content) if path.endswith(LFS_ENDINGS) else _blob(content)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if path.endswith(LFS_ENDINGS):
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return self._send(200, sent, headers)
        first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return self._send(206, sent[first : last + 1], headers)

    def create(self) -> None:
        self._writer()
        asked = json.loads(self.content)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.state.repositories:
            content = {"error": "You already created this model repo", "url": f"{self.state.endpoint}/{name}"}
            return self._send(409, json.dumps(content).encode())
        private = asked.get("private") or asked.get("visibility") == "private"
        self.state.add(name, {}, private=bool(private))
        return self._json({"url": f"{self.state.endpoint}/{name}"})

    def branch(self, name: str, branch: str) -> None:
        self._writer()
        repository = self._repository(name)
        if branch in repository.branches:
            raise _Refusal(409, message="Reference already exists")
        repository.branches[branch] = repository.branches["main"]
        self._json({})

    def validate(self) -> None:
        """Check a card as the hub does: only licence, datasets and results have rules."""
        errors = []
        front_matter = re.match(r"---\n(.*?)\n---\n", json.loads(self.content)["content"], flags=re.DOTALL)
        data = yaml.safe_load(front_matter[1]) if front_matter else {}
        if data.get("license", "mit") not in LICENCES:
            errors.append('"license" must be one of [...]')
        errors += [f"dataset {d!r}" for d in data.get("datasets", []) if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", d)]
        for result in [r for model in data.get("model-index", []) for r in model["results"]]:
            values = [metric["value"] for metric in result["metrics"] if metric["type"]]
            if not (result["task"]["type"] and result["dataset"]["type"] and result["dataset"]["name"] and values):
                errors.append("model-index")
        content = json.dumps({"errors": [{"message": e} for e in errors], "warnings": []}).encode()
        self._send(400 if errors else 200, content)

    def preupload(self, name: str, revision: str) -> None:
        self._writer()
        _, files = self._files(name, revision)
        modes = []
        for file in json.loads(self.content)["files"]:
            lfs = file["path"].endswith(LFS_ENDINGS)
            known = files.get(file["path"])
            oid = None if known is None else _oid(known) if lfs else _blob(known)
            mode = {"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            modes.append({**mode, **({"oid": oid} if oid else {})})
        self._json({"files": modes})

    def batch(self, name: str) -> None:
        self._writer()
        self._repository(name)
        objects = []
        for wanted in json.loads(self.content)["objects"]:
            actions = {"actions": {"upload": {"href": f"{self.state.endpoint}/objects/{wanted['oid']}"}}}
            objects.append({**wanted, **({} if wanted["oid"] in self.state.objects else actions)})
        self._json({"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        if _oid(self.content) != oid:
            raise _Refusal(400, message="another content")
        self.state.objects[oid] = self.content
        self._send(200, b"")

    def commit(self, name: str, revision: str) -> None:
        self._writer()
        _, files = self._files(name, revision)
        files = dict(files)
        for line in self.content.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.state.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        oid = self._repository(name).commit(revision, files)
        self._json({"commitUrl": f"{self.state.endpoint}/{name}/commit/{oid}", "commitOid": oid})


_NAME = r"([^/]+/[^/]+)"
ROUTES = [
    ("GET", rf"/api/models/{_NAME}", _Handler.info),
    ("GET", rf"/api/models/{_NAME}/revision/([^/]+)", _Handler.info),
    ("GET", rf"/api/models/{_NAME}/tree/([^/]+)", _Handler.tree),
    ("GET", rf"/{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", rf"/api/models/{_NAME}/branch/([^/]+)", _Handler.branch),
    ("POST", r"/api/validate-yaml", _Handler.validate),
    ("POST", rf"/api/models/{_NAME}/preupload/([^/]+)", _Handler.preupload),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", r"/objects/(\w+)", _Handler.upload),
    ("POST", rf"/api/models/{_NAME}/commit/([^/]+)", _Handler.commit),
]
