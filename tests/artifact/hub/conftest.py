"""A stand-in of the Hub that answers what its client asks for, on this machine, and keeps a log."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import close_session, constants
from huggingface_hub.utils import _detect_agent

WRITER, READER, STRANGER = "hf_writer", "hf_reader", "hf_stranger"
OWNERS = {WRITER: "ada", READER: "ada", STRANGER: "bob"}
Files = dict[str, bytes]


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


class Refused(Exception):
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
        except Refused as refused:
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

    def _json(self, value: object, status: int = 200) -> tuple[int, bytes, dict[str, str]]:
        return status, json.dumps(value).encode(), {"Content-Type": "application/json"}

    @property
    def who(self) -> str | None:
        given = self.headers.get("Authorization")
        if given is None:
            return None
        token = given.removeprefix("Bearer ")
        if token not in OWNERS:
            raise Refused(401, "Invalid credentials in Authorization header")
        return token

    def _may_write(self, owner: str) -> None:
        token = self.who
        if token is None:
            raise Refused(401, "Invalid username or password.")
        if token != WRITER or OWNERS[token] != owner:
            raise Refused(403, f"you lack the rights to write to {owner}")

    def _repo(self, name: str) -> Repo:
        token = self.who
        repo = self.hub.repos.get(name)
        seen = repo and (not repo.private or OWNERS.get(token or "") == name.split("/")[0])
        if not repo or not seen:
            if token is None:
                raise Refused(401, "Invalid username or password.")
            raise Refused(404, "Repository not found", "RepoNotFound")
        return repo

    def _found(self, repo: Repo, revision: str) -> str:
        found = repo.find(revision)
        if found is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    def _route(self, path: str, query: str) -> tuple[int, bytes, dict[str, str]]:
        parts = [unquote(part) for part in path.strip("/").split("/")]
        name = "/".join(parts[2:4])
        match self.command, parts:
            case "POST", ["api", "repos", "create"]:
                return self._create()
            case "POST", ["api", "validate-yaml"]:
                return self._json({"errors": [], "warnings": []})
            case "GET", ["api", "models", _, _]:
                return self._info(name, "main", query)
            case "GET", ["api", "models", _, _, "revision", revision]:
                return self._info(name, revision, query)
            case "GET", ["api", "models", _, _, "refs"]:
                return self._refs(self._repo(name))
            case "POST", ["api", "models", owner, _, action, revision]:
                repo = self._repo(name)
                self._may_write(owner)
                do = {"preupload": self._preupload, "commit": self._commit, "branch": self._branch}
                return do[action](repo, revision)
            case "POST", [owner, _, "info", "lfs", "objects", "batch"]:
                self._may_write(owner)
                return self._batch()
            case "PUT", ["upload", oid]:
                self.hub.stored[oid] = self.body
                return 200, b"", {}
            case (("GET" | "HEAD"), ["cdn", oid]):
                return self._bytes(self.hub.stored[oid], {"ETag": f'"{oid}"'})
            case (("GET" | "HEAD"), [owner, _, "resolve", revision, *inside]):
                return self._resolve("/".join(parts[:2]), revision, "/".join(inside))
        raise Refused(404, f"the stand-in has no {self.command} {path}")

    def _create(self) -> tuple[int, bytes, dict[str, str]]:
        asked = json.loads(self.body)
        self._may_write(asked["organization"])
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repos:
            raise Refused(409, "You already created this model repo")
        self.hub.make(name, {}, private=asked.get("visibility") == "private")
        return self._json({"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def _info(self, name: str, revision: str, query: str) -> tuple[int, bytes, dict[str, str]]:
        repo = self._repo(name)
        commit = self._found(repo, revision)
        files = repo.commits[commit]
        listed: list[dict[str, object]] = [{"rfilename": path} for path in sorted(files)]
        if "blobs" in parse_qs(query):
            listed = [one | {"size": len(files[str(one["rfilename"])])} for one in listed]
        info = {"id": name, "sha": commit, "private": repo.private, "siblings": listed}
        return self._json(info | {"gated": "manual" if repo.gated else False})

    def _refs(self, repo: Repo) -> tuple[int, bytes, dict[str, str]]:
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

    def _branch(self, repo: Repo, name: str) -> tuple[int, bytes, dict[str, str]]:
        if name in repo.heads:
            raise Refused(409, "Reference already exists")
        repo.heads[name] = repo.heads["main"]
        return self._json({})

    def _preupload(self, repo: Repo, revision: str) -> tuple[int, bytes, dict[str, str]]:
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

    def _batch(self) -> tuple[int, bytes, dict[str, str]]:
        objects = []
        for one in json.loads(self.body)["objects"]:
            href = f"{self.hub.url}/upload/{one['oid']}"
            new = one["oid"] not in self.hub.stored
            objects.append(one | ({"actions": {"upload": {"href": href}}} if new else {}))
        return self._json({"transfer": "basic", "objects": objects})

    def _commit(self, repo: Repo, branch: str) -> tuple[int, bytes, dict[str, str]]:
        if branch not in repo.heads:
            raise Refused(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        header, *lines = [json.loads(line) for line in self.body.splitlines()]
        if header["value"].get("parentCommit", repo.heads[branch]) != repo.heads[branch]:
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repo.commits[repo.heads[branch]])
        for line in lines:
            value = line["value"]
            if line["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
            else:
                files[value["path"]] = base64.b64decode(value["content"])
        made = repo.commit(files, branch=branch, message=header["value"]["summary"])
        url = f"{self.hub.url}{urlsplit(self.path).path}/{made}"
        return self._json({"success": True, "commitOid": made, "commitUrl": url})

    def _resolve(self, name: str, revision: str, path: str) -> tuple[int, bytes, dict[str, str]]:
        repo = self._repo(name)
        if repo.gated:
            raise Refused(403, f"Access to model {name} is restricted", "GatedRepo")
        commit = self._found(repo, revision)
        if path not in repo.commits[commit]:
            raise Refused(404, "Entry not found", "EntryNotFound")
        raw, headers = repo.commits[commit][path], {"X-Repo-Commit": commit}
        if not path.endswith(".safetensors"):
            return self._bytes(raw, headers | {"ETag": f'"{git_blob(raw)}"'})
        oid = hashlib.sha256(raw).hexdigest()
        self.hub.stored[oid] = raw
        headers |= {"X-Linked-Size": str(len(raw)), "X-Linked-ETag": f'"{oid}"'}
        return 302, b"", headers | {"Location": f"{self.hub.url}/cdn/{oid}"}

    def _bytes(self, raw: bytes, headers: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        given = self.headers.get("Range")
        if given is None:
            return 200, raw, headers
        start = int(given.removeprefix("bytes=").split("-")[0])
        span = f"bytes {start}-{len(raw) - 1}/{len(raw)}"
        return 206, raw[start:], headers | {"Content-Range": span}


@pytest.fixture
def away(monkeypatch, tmp_path: Path) -> Iterator[Hub]:
    """The stand-in, which the client in this process takes for the Hub; nobody is logged in."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.daemon_threads = True
    server.hub = hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    for name, value in {
        "ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(tmp_path / "hf" / "hub"),
        "HF_TOKEN_PATH": str(tmp_path / "hf" / "token"),
        "AGENT_HARNESSES_PATH": str(tmp_path / "hf" / "harnesses"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(_detect_agent, "detect_agent", lambda: None, raising=False)
    close_session()
    yield hub
    close_session()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def hub(away: Hub, monkeypatch) -> Hub:
    """The stand-in, to whom we are logged in as who may write."""
    monkeypatch.setenv("HF_TOKEN", WRITER)
    return away


@pytest.fixture
def command(away: Hub, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run softprompt in a process of its own, which takes the stand-in for the Hub."""

    def run(*args: object, **more: str) -> subprocess.CompletedProcess[str]:
        without = {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"}
        environment = {k: v for k, v in os.environ.items() if k not in without} | {
            "HF_ENDPOINT": away.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            **more,
        }
        line = [sys.executable, "-m", "softprompt", *map(str, args)]
        return subprocess.run(line, capture_output=True, text=True, check=False, env=environment)

    return run
