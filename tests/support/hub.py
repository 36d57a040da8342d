"""A local server that stands in for the Hub: it answers the client's requests and logs them."""

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
Response = tuple[int, bytes, dict[str, str]]  # status, body, headers


def hash_git_blob(raw: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()  # noqa: S324  # git's own name


@dataclass
class Repo:
    """A repository: the files of each commit, and the commits of branches and tags."""

    private: bool = False
    gated: bool = False
    commits: dict[str, Files] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: Files, *, branch: str = "main", message: str = "") -> str:
        """Add a commit to a branch, and return its name."""
        content = f"{len(self.commits)}{sorted(files)}"
        name = hashlib.sha1(content.encode()).hexdigest()  # noqa: S324  # as git names commits
        self.commits[name] = files
        self.heads[branch] = name
        self.messages.append(message)
        return name

    def find(self, revision: str) -> str | None:
        """The commit of a branch, tag or commit; None if there is none."""
        refs = self.heads | self.tags
        return refs.get(revision, revision if revision in self.commits else None)

    @property
    def files(self) -> Files:
        """The files of the main branch, without those that the Hub creates itself."""
        return {k: v for k, v in self.commits[self.heads["main"]].items() if k[0] != "."}


@dataclass
class Fault:
    """A planted fault.

    Args:
        begins: requests whose method and path begin with this have the fault.
        status: of the response; 0 for the usual response.
        headers: of an error response.
        keep: the bytes of the body that are sent; None for all.
        honest: whether Content-Length counts the bytes of the whole body.
        times: the number of requests that have the fault.
    """

    begins: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    keep: int | None = None
    honest: bool = True
    times: int = 99


@dataclass
class Hub:
    """The state of the server. ``log`` holds every request with its body."""

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
        """The requests whose method and path begin so."""
        return [line for line, _ in self.log if line.startswith(begins)]

    def take_fault(self, line: str) -> Fault | None:
        """The planted fault of a request, which counts as used once."""
        for fault in self.faults:
            if line.startswith(fault.begins) and fault.times:
                fault.times -= 1
                return fault
        return None


class RefusedError(Exception):
    """An error response."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class RequestHandler(BaseHTTPRequestHandler):
    """Handles one request."""

    protocol_version = "HTTP/1.1"
    server: Any

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def log_message(self, *_: object) -> None:
        """Write nothing to stderr."""

    def _run(self) -> None:
        self.body = self._body()
        line = f"{self.command} {unquote(self.path)}"
        self.hub.log.append((line, self.body))
        fault = self.hub.take_fault(line)
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

    def _json(self, value: object, status: int = 200) -> Response:
        return status, json.dumps(value).encode(), {"Content-Type": "application/json"}

    @property
    def token(self) -> str | None:
        """The token of the request."""
        header = self.headers.get("Authorization")
        if header is None:
            return None
        token = header.removeprefix("Bearer ")
        if token not in OWNERS:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return token

    def _check_write(self, owner: str) -> None:
        token = self.token
        if token is None:
            raise RefusedError(401, "Invalid username or password.")
        if token != WRITER or OWNERS[token] != owner:
            raise RefusedError(403, f"you lack the rights to write to {owner}")

    def _repo(self, name: str) -> Repo:
        token = self.token
        repo = self.hub.repos.get(name)
        visible = repo and (not repo.private or OWNERS.get(token or "") == name.partition("/")[0])
        if not repo or not visible:
            if token is None:
                raise RefusedError(401, "Invalid username or password.")
            raise RefusedError(404, "Repository not found", "RepoNotFound")
        return repo

    def _writable(self, name: str) -> Repo:
        repo = self._repo(name)
        self._check_write(name.partition("/")[0])
        return repo

    def _find_commit(self, repo: Repo, revision: str) -> str:
        commit = repo.find(revision)
        if commit is None:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def _route(self, path: str, query: str) -> Response:
        verb = "GET" if self.command == "HEAD" else self.command
        self.query = parse_qs(query)
        for pattern, handle in ROUTES.items():
            if match := re.fullmatch(pattern, f"{verb} {path}"):
                return handle(self, **{k: unquote(v) for k, v in match.groupdict().items()})
        raise RefusedError(404, f"the stand-in has no {verb} {path}")

    def _validate_card(self) -> Response:
        return self._json({"errors": [], "warnings": []})

    def _create(self) -> Response:
        asked = json.loads(self.body)
        self._check_write(asked["organization"])
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repos:
            raise RefusedError(409, "You already created this model repo")
        self.hub.make(name, {}, private=asked.get("visibility") == "private")
        return self._json({"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def _info(self, name: str, revision: str = "main") -> Response:
        repo = self._repo(name)
        commit = self._find_commit(repo, revision)
        files = repo.commits[commit]
        listed: list[dict[str, object]] = [{"rfilename": path} for path in sorted(files)]
        if "blobs" in self.query:
            listed = [one | {"size": len(files[str(one["rfilename"])])} for one in listed]
        info = {"id": name, "sha": commit, "private": repo.private, "siblings": listed}
        return self._json(info | {"gated": "manual" if repo.gated else False})

    def _refs(self, name: str) -> Response:
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

    def _branch(self, name: str, branch: str) -> Response:
        repo = self._writable(name)
        if branch in repo.heads:
            raise RefusedError(409, "Reference already exists")
        repo.heads[branch] = repo.heads["main"]
        return self._json({})

    def _preupload(self, name: str, revision: str) -> Response:
        repo = self._writable(name)
        old = repo.commits[self._find_commit(repo, revision)]
        files = []
        for one in json.loads(self.body)["files"]:
            path = one["path"]
            large = path.endswith(".safetensors")
            entry = {"path": path, "uploadMode": "lfs" if large else "regular"}
            entry["shouldIgnore"] = path in self.hub.ignored
            if path in old:
                content = old[path]
                sha256 = hashlib.sha256(content).hexdigest()
                entry["oid"] = sha256 if large else hash_git_blob(content)
            files.append(entry)
        return self._json({"files": files})

    def _batch(self, name: str) -> Response:
        self._writable(name)
        objects = []
        for one in json.loads(self.body)["objects"]:
            href = f"{self.hub.url}/upload/{one['oid']}"
            new = one["oid"] not in self.hub.stored
            objects.append(one | ({"actions": {"upload": {"href": href}}} if new else {}))
        return self._json({"transfer": "basic", "objects": objects})

    def _commit(self, name: str, branch: str) -> Response:
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
        commit = repo.commit(files, branch=branch, message=header["value"]["summary"])
        url = f"{self.hub.url}/{name}/commit/{commit}"
        return self._json({"success": True, "commitOid": commit, "commitUrl": url})

    def _upload(self, oid: str) -> Response:
        self.hub.stored[oid] = self.body
        return 200, b"", {}

    def _cdn(self, oid: str) -> Response:
        assert "Authorization" not in self.headers
        return self._bytes(self.hub.stored[oid], {"ETag": f'"{oid}"'})

    def _resolve(self, name: str, revision: str, path: str) -> Response:
        repo = self._repo(name)
        if repo.gated:
            raise RefusedError(403, f"Access to model {name} is restricted", "GatedRepo")
        commit = self._find_commit(repo, revision)
        if path not in repo.commits[commit]:
            raise RefusedError(404, "Entry not found", "EntryNotFound")
        raw, headers = repo.commits[commit][path], {"X-Repo-Commit": commit}
        if not path.endswith(".safetensors"):
            return self._bytes(raw, headers | {"ETag": f'"{hash_git_blob(raw)}"'})
        oid = hashlib.sha256(raw).hexdigest()
        self.hub.stored[oid] = raw
        headers |= {"X-Linked-Size": str(len(raw)), "X-Linked-ETag": f'"{oid}"'}
        # Large files are on another host, which must not get the token.
        other = self.hub.url.replace("127.0.0.1", "localhost")
        return 302, b"", headers | {"Location": f"{other}/cdn/{oid}"}

    def _bytes(self, raw: bytes, headers: dict[str, str]) -> Response:
        header = self.headers.get("Range")
        if header is None:
            return 200, raw, headers
        start = int(header.removeprefix("bytes=").split("-")[0])
        span = f"bytes {start}-{len(raw) - 1}/{len(raw)}"
        return 206, raw[start:], headers | {"Content-Range": span}


_NAME = "(?P<name>[^/]+/[^/]+)"
_MODEL = f"/api/models/{_NAME}"
ROUTES: dict[str, Callable[..., Response]] = {
    "POST /api/repos/create": RequestHandler._create,
    "POST /api/validate-yaml": RequestHandler._validate_card,
    f"GET {_MODEL}": RequestHandler._info,
    f"GET {_MODEL}/revision/(?P<revision>[^/]+)": RequestHandler._info,
    f"GET {_MODEL}/refs": RequestHandler._refs,
    f"POST {_MODEL}/branch/(?P<branch>[^/]+)": RequestHandler._branch,
    f"POST {_MODEL}/preupload/(?P<revision>[^/]+)": RequestHandler._preupload,
    f"POST {_MODEL}/commit/(?P<branch>[^/]+)": RequestHandler._commit,
    f"POST /{_NAME}[.]git/info/lfs/objects/batch": RequestHandler._batch,
    "PUT /upload/(?P<oid>[0-9a-f]+)": RequestHandler._upload,
    "GET /cdn/(?P<oid>[0-9a-f]+)": RequestHandler._cdn,
    f"GET /{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)": RequestHandler._resolve,
}


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Run the server, and stop it at the end."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), RequestHandler)
    server.daemon_threads = True
    server.hub = hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()
