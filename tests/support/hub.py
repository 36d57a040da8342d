"""A stand-in of the Hub that answers what its client asks for, on this machine, and keeps a log."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

WRITER, READER, STRANGER = "hf_writer", "hf_reader", "hf_stranger"
OWNERS = {WRITER: "ada", READER: "ada", STRANGER: "bob"}
Files = dict[str, bytes]
Answer = tuple[int, bytes, dict[str, str]]


def git_blob(raw: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()  # noqa: S324  # git's own name


@dataclass
class Repo:
    """Commits of files by name, and what points at them."""

    private: bool = False
    gated: bool = False
    commits: dict[str, Files] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: Files, *, branch: str = "main", message: str = "") -> str:
        made = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()  # noqa: S324
        self.commits[made] = files
        self.heads[branch] = made
        self.messages.append(message)
        return made

    def find(self, revision: str) -> str | None:
        pointed = self.heads | self.tags
        return pointed.get(revision, revision if revision in self.commits else None)

    @property
    def files(self) -> Files:
        """What stands on the main branch, but for what the Hub itself puts there."""
        return {k: v for k, v in self.commits[self.heads["main"]].items() if k[0] != "."}


@dataclass
class Fault:
    """What goes wrong with requests whose method and path begin so; ``times`` of them."""

    begins: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    keep: int | None = None
    honest: bool = True
    times: int = 99


@dataclass
class Hub:
    """The stand-in's state; ``log`` has every request with its body."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    stored: Files = field(default_factory=dict)
    log: list[tuple[str, bytes]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    ignored: set[str] = field(default_factory=set)

    def make(self, name: str, files: Files, *, private: bool = False, gated: bool = False) -> Repo:
        repo = self.repos[name] = Repo(private, gated)
        repo.commit({".gitattributes": b"*.safetensors filter=lfs\n"} | files)
        return repo

    def asked(self, begins: str) -> list[str]:
        return [line for line, _ in self.log if line.startswith(begins)]

    def fault(self, line: str) -> Fault | None:
        for fault in self.faults:
            if line.startswith(fault.begins) and fault.times:
                fault.times -= 1
                return fault
        return None


class RefusedError(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Answers(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: Any

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def log_message(self, *_: object) -> None:
        """Stderr is for the tests."""

    def _run(self) -> None:
        self.body = self._body()
        line = f"{self.command} {unquote(self.path)}"
        self.hub.log.append((line, self.body))
        fault = self.hub.fault(line)
        try:
            if fault and fault.status:
                self._send(fault.status, b'{"error": "planted"}', fault.headers)
                return
            status, raw, headers = self._route(*urlsplit(self.path)[2:4])
            self._send(status, raw, headers, fault)
        except RefusedError as refused:
            headers = {"X-Error-Message": str(refused)}
            headers |= {"X-Error-Code": refused.code} if refused.code else {}
            self._send(refused.status, json.dumps({"error": str(refused)}).encode(), headers)

    do_GET = do_HEAD = do_POST = do_PUT = _run  # noqa: N815  # http.server's names

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _send(
        self, status: int, raw: bytes, headers: dict[str, str], fault: Fault | None = None
    ) -> None:
        self.send_response(status)
        cut = raw if fault is None or fault.keep is None else raw[: fault.keep]
        length = len(raw) if fault is None or fault.honest else len(cut)
        for name, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(cut)
        if len(cut) < length:
            self.close_connection = True

    def _json(self, value: object, status: int = 200) -> Answer:
        return status, json.dumps(value).encode(), {"Content-Type": "application/json"}

    @property
    def who(self) -> str | None:
        given = self.headers.get("Authorization")
        if given is None:
            return None
        token = given.removeprefix("Bearer ")
        if token not in OWNERS:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return token

    def _may_write(self, owner: str) -> None:
        token = self.who
        if token is None:
            raise RefusedError(401, "Invalid username or password.")
        if token != WRITER or OWNERS[token] != owner:
            raise RefusedError(403, f"you lack the rights to write to {owner}")

    def _repo(self, name: str) -> Repo:
        token = self.who
        repo = self.hub.repos.get(name)
        seen = repo and (not repo.private or OWNERS.get(token or "") == name.partition("/")[0])
        if not repo or not seen:
            if token is None:
                raise RefusedError(401, "Invalid username or password.")
            raise RefusedError(404, "Repository not found", "RepoNotFound")
        return repo

    def _writable(self, name: str) -> Repo:
        repo = self._repo(name)
        self._may_write(name.partition("/")[0])
        return repo

    def _found(self, repo: Repo, revision: str) -> str:
        found = repo.find(revision)
        if found is None:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    def _route(self, path: str, query: str) -> Answer:
        verb = "GET" if self.command == "HEAD" else self.command
        self.asked = parse_qs(query)
        for pattern, answer in ROUTES.items():
            if found := re.fullmatch(pattern, f"{verb} {path}"):
                return answer(self, **{k: unquote(v) for k, v in found.groupdict().items()})
        raise RefusedError(404, f"the stand-in has no {verb} {path}")

    def _whole(self) -> Answer:
        return self._json({"errors": [], "warnings": []})

    def _create(self) -> Answer:
        asked = json.loads(self.body)
        self._may_write(asked["organization"])
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repos:
            raise RefusedError(409, "You already created this model repo")
        self.hub.make(name, {}, private=asked.get("visibility") == "private")
        return self._json({"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def _info(self, name: str, revision: str = "main") -> Answer:
        repo = self._repo(name)
        commit = self._found(repo, revision)
        files = repo.commits[commit]
        listed: list[dict[str, object]] = [{"rfilename": path} for path in sorted(files)]
        if "blobs" in self.asked:
            listed = [one | {"size": len(files[str(one["rfilename"])])} for one in listed]
        info = {"id": name, "sha": commit, "private": repo.private, "siblings": listed}
        return self._json(info | {"gated": "manual" if repo.gated else False})

    def _refs(self, name: str) -> Answer:
        repo = self._repo(name)
        kinds = {"branches": ("heads", repo.heads), "tags": ("tags", repo.tags)}
        return self._json(
            {"converts": []}
            | {
                kind: [
                    {"name": name, "ref": f"refs/{place}/{name}", "targetCommit": commit}
                    for name, commit in refs.items()
                ]
                for kind, (place, refs) in kinds.items()
            }
        )

    def _branch(self, name: str, branch: str) -> Answer:
        repo = self._writable(name)
        if branch in repo.heads:
            raise RefusedError(409, "Reference already exists")
        repo.heads[branch] = repo.heads["main"]
        return self._json({})

    def _preupload(self, name: str, revision: str) -> Answer:
        repo = self._writable(name)
        old = repo.commits[self._found(repo, revision)]
        files = []
        for one in json.loads(self.body)["files"]:
            path = one["path"]
            large = path.endswith(".safetensors")
            said = {"path": path, "uploadMode": "lfs" if large else "regular"}
            said["shouldIgnore"] = path in self.hub.ignored
            if path in old:
                named = hashlib.sha256(old[path]).hexdigest() if large else git_blob(old[path])
                said["oid"] = named
            files.append(said)
        return self._json({"files": files})

    def _batch(self, name: str) -> Answer:
        self._writable(name)
        objects = []
        for one in json.loads(self.body)["objects"]:
            href = f"{self.hub.url}/upload/{one['oid']}"
            new = one["oid"] not in self.hub.stored
            objects.append(one | ({"actions": {"upload": {"href": href}}} if new else {}))
        return self._json({"transfer": "basic", "objects": objects})

    def _commit(self, name: str, branch: str) -> Answer:
        repo = self._writable(name)
        if branch not in repo.heads:
            raise RefusedError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        header, *lines = [json.loads(line) for line in self.body.splitlines()]
        if header["value"].get("parentCommit", repo.heads[branch]) != repo.heads[branch]:
            raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repo.commits[repo.heads[branch]])
        for line in lines:
            value = line["value"]
            if line["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
            else:
                files[value["path"]] = base64.b64decode(value["content"])
        made = repo.commit(files, branch=branch, message=header["value"]["summary"])
        url = f"{self.hub.url}/{name}/commit/{made}"
        return self._json({"success": True, "commitOid": made, "commitUrl": url})

    def _upload(self, oid: str) -> Answer:
        self.hub.stored[oid] = self.body
        return 200, b"", {}

    def _cdn(self, oid: str) -> Answer:
        assert "Authorization" not in self.headers
        return self._bytes(self.hub.stored[oid], {"ETag": f'"{oid}"'})

    def _resolve(self, name: str, revision: str, path: str) -> Answer:
        repo = self._repo(name)
        if repo.gated:
            raise RefusedError(403, f"Access to model {name} is restricted", "GatedRepo")
        commit = self._found(repo, revision)
        if path not in repo.commits[commit]:
            raise RefusedError(404, "Entry not found", "EntryNotFound")
        raw, headers = repo.commits[commit][path], {"X-Repo-Commit": commit}
        if not path.endswith(".safetensors"):
            return self._bytes(raw, headers | {"ETag": f'"{git_blob(raw)}"'})
        oid = hashlib.sha256(raw).hexdigest()
        self.hub.stored[oid] = raw
        headers |= {"X-Linked-Size": str(len(raw)), "X-Linked-ETag": f'"{oid}"'}
        # Large files are on another host, which the token must not be shown to.
        away = self.hub.url.replace("127.0.0.1", "localhost")
        return 302, b"", headers | {"Location": f"{away}/cdn/{oid}"}

    def _bytes(self, raw: bytes, headers: dict[str, str]) -> Answer:
        given = self.headers.get("Range")
        if given is None:
            return 200, raw, headers
        start = int(given.removeprefix("bytes=").split("-")[0])
        span = f"bytes {start}-{len(raw) - 1}/{len(raw)}"
        return 206, raw[start:], headers | {"Content-Range": span}


_NAME = "(?P<name>[^/]+/[^/]+)"
_MODEL = f"/api/models/{_NAME}"
ROUTES: dict[str, Callable[..., Answer]] = {
    "POST /api/repos/create": Answers._create,
    "POST /api/validate-yaml": Answers._whole,
    f"GET {_MODEL}": Answers._info,
    f"GET {_MODEL}/revision/(?P<revision>[^/]+)": Answers._info,
    f"GET {_MODEL}/refs": Answers._refs,
    f"POST {_MODEL}/branch/(?P<branch>[^/]+)": Answers._branch,
    f"POST {_MODEL}/preupload/(?P<revision>[^/]+)": Answers._preupload,
    f"POST {_MODEL}/commit/(?P<branch>[^/]+)": Answers._commit,
    f"POST /{_NAME}[.]git/info/lfs/objects/batch": Answers._batch,
    "PUT /upload/(?P<oid>[0-9a-f]+)": Answers._upload,
    "GET /cdn/(?P<oid>[0-9a-f]+)": Answers._cdn,
    f"GET /{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)": Answers._resolve,
}


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """A running stand-in, which stops at the end."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.daemon_threads = True
    server.hub = hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()
