"""The Hub's HTTP interface on the loopback, as far as uploads and downloads use it.

Repositories are in memory. `huggingface_hub` itself talks to it: what a test sees is what the
client sends and understands, except for Xet, which tests turn off.
"""

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_of_the_tests"  # noqa: S105  (opens nothing)


def _sha1(data):
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


@dataclass
class Repository:
    """One repository: the files of its newest commit."""

    private: bool
    files: dict = field(default_factory=dict)
    commits: list = field(default_factory=list)
    listed: list = field(default_factory=list)
    """Names that the listings have beside those of the files."""

    @property
    def sha(self):
        """The commit: another one for other content."""
        state = sorted((name, _sha1(data)) for name, data in self.files.items())
        return _sha1(json.dumps([state, len(self.commits), self.listed]).encode())

    def about(self, name):
        """A file as the Hub lists it."""
        data = self.files.get(name, b"")
        blob = _sha1(b"blob %d\0" % len(data) + data)
        found = {"type": "file", "path": name, "size": len(data), "oid": blob}
        if is_large(name):
            sha = hashlib.sha256(data).hexdigest()
            found["lfs"] = {"oid": sha, "size": len(data), "pointerSize": 130}
        return found


def is_large(name):
    """Whether the Hub stores a file by Git LFS."""
    return name.endswith(".safetensors") or "/c/" in name


class HubStandIn:
    """The server; `repositories` by kind and name, such as ("model", "me/student")."""

    def __init__(self):
        self.repositories, self.objects, self.requests = {}, {}, []
        self.on_commit = lambda repository: None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), daemon=True
        )
        self._thread.start()

    def repository(self, name, kind="model"):
        return self.repositories[kind, name]

    def files(self, name, kind="model"):
        return self.repositories[kind, name].files

    def downloads(self):
        return [path for method, path in self.requests if method == "GET" and "/resolve/" in path]

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler_of(hub):
    def _page(kind, name):
        return f"{hub.url}/{'datasets/' if kind == 'dataset' else ''}{name}"

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            self._answer()

        do_HEAD = do_POST = do_PUT = do_GET

        def _answer(self):
            parts = urlsplit(self.path)
            path, self.query = unquote(parts.path), parse_qs(parts.query)
            self.body = self._read()
            hub.requests.append((self.command, path))
            words = path.strip("/").split("/")
            if words[0] == "lfs":
                hub.objects[words[1]] = self.body
                self._reply({})
            elif words[:2] == ["api", "repos"]:
                self._create()
            elif words[:2] == ["api", "validate-yaml"]:
                self._reply({"errors": [], "warnings": []})
            elif words[0] == "api" and words[1] in ("models", "datasets"):
                self._api(words[1].rstrip("s"), "/".join(words[2:4]), words[4:])
            elif "resolve" in words:
                kind = "dataset" if words[0] == "datasets" else "model"
                words = words[1:] if kind == "dataset" else words
                self._file(kind, "/".join(words[:2]), "/".join(words[4:]))
            elif path.endswith(".git/info/lfs/objects/batch"):
                found = json.loads(self.body)["objects"]
                self._reply({"transfer": "basic", "objects": [
                    {**one, "actions": {"upload": {"href": f"{hub.url}/lfs/{one['oid']}"}}}
                    for one in found
                ]})  # fmt: skip
            else:
                self._fail(404, None, "no such page")

        def _read(self):
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        @property
        def _known(self):
            return self.headers.get("Authorization") == f"Bearer {TOKEN}"

        def _create(self):
            if not self._known:
                self._fail(401, None, "Invalid username or password.")
                return
            given = json.loads(self.body)
            owner = given.get("organization") or "me"
            key = given.get("type") or "model", f"{owner}/{given['name']}"
            existed = key in hub.repositories
            private = given.get("visibility") == "private" or given.get("private") is True
            hub.repositories.setdefault(key, Repository(private))
            self._reply({"url": _page(*key)}, 409 if existed else 200)

        def _found(self, kind, name):
            repository = hub.repositories.get((kind, name))
            if repository is None or (repository.private and not self._known):
                self._fail(404 if self._known else 401, "RepoNotFound", "Repository not found")
                return None
            return repository

        def _api(self, kind, name, words):
            repository = self._found(kind, name)
            if repository is None:
                return
            names = [*repository.files, *repository.listed]
            if words[:1] in ([], ["revision"]):
                siblings = [{"rfilename": one} for one in names]
                self._reply({"id": name, "sha": repository.sha, "siblings": siblings})
            elif words[0] == "tree":
                self._reply([repository.about(one) for one in names])
            elif words[0] == "paths-info":
                wanted = parse_qs(self.body.decode()).get("paths") or json.loads(self.body)["paths"]
                self._reply([repository.about(one) for one in wanted if one in repository.files])
            elif words[0] == "preupload":
                files = json.loads(self.body)["files"]
                self._reply({"files": [
                    {"path": one["path"], "shouldIgnore": False,
                     "uploadMode": "lfs" if is_large(one["path"]) else "regular"}
                    for one in files
                ]})  # fmt: skip
            elif words[0] == "commit":
                self._commit(repository, _page(kind, name))

        def _commit(self, repository, page):
            lines = [json.loads(line) for line in self.body.splitlines()]
            for one in lines:
                value = one["value"]
                if one["key"] == "header":
                    repository.commits.append(value["summary"])
                elif one["key"] == "file":
                    repository.files[value["path"]] = base64.b64decode(value["content"])
                else:
                    repository.files[value["path"]] = hub.objects[value["oid"]]
            hub.on_commit(repository)
            self._reply({"commitUrl": f"{page}/commit/{repository.sha}",
                         "commitOid": repository.sha})  # fmt: skip

        def _file(self, kind, name, path):
            repository = self._found(kind, name)
            if repository is None:
                return
            if path not in repository.files:
                self._fail(404, "EntryNotFound", "Entry not found")
                return
            data, about = repository.files[path], repository.about(path)
            etag = about["lfs"]["oid"] if "lfs" in about else about["oid"]
            headers = {"X-Repo-Commit": repository.sha, "ETag": f'"{etag}"'}
            if "lfs" in about:
                headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
            wanted = self.headers.get("Range")
            if wanted:
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                data = data[int(first) : int(last) + 1 if last else None]
            self._send(206 if wanted else 200, data, headers)

        def _reply(self, value, status=200):
            data = json.dumps(value).encode()
            self._send(status, data, {"Content-Type": "application/json"})

        def _fail(self, status, code, message):
            headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
            self._send(status, b"{}", headers | {"Content-Type": "application/json"})

        def _send(self, status, data, headers):
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    return Handler
