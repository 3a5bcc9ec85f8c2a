"""A stand-in for the Hugging Face hub on this machine: set HF_ENDPOINT to its ``url``."""

from __future__ import annotations

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

REPO = "someone/some-model"


class FakeHub(ThreadingHTTPServer):
    """Serves one repository as the hub does, a model or a dataset, and takes commits to it;
    ``error`` overrides every answer."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, bytes]] = {}  # commit -> name -> content
        self.refs: dict[str, str] = {}
        self.requests: list[str] = []
        self.error: tuple[int, str] | None = None
        self.damage = False
        self.created: dict[str, object] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        """What an upload asks: make a repository, how to send each file, and the commit."""
        path = urlsplit(self.path).path
        size = self.headers["Content-Length"]
        sent = self.rfile.read(int(size)) if size else self._chunks()
        self.server.requests.append(path)
        answer: dict[str, object] = {}
        if self.server.error:
            status, code = self.server.error
            self._send(status, b"{}", X_Error_Code=code)
            return
        if path == "/api/repos/create":
            self.server.created = json.loads(sent)
            answer = {"url": f"{self.server.url}/{REPO}"}
            self.server.files.setdefault(self.server.refs.setdefault("main", "c" * 40), {})
        elif "/preupload/" in path:
            regular = {"uploadMode": "regular", "shouldIgnore": False}
            answer = {"files": [{"path": f["path"], **regular} for f in json.loads(sent)["files"]]}
        elif "/commit/" in path:
            files = dict(self.server.files[self.server.refs["main"]])
            for line in sent.splitlines():
                said = json.loads(line)
                if said["key"] == "file":
                    value = said["value"]
                    files[value["path"]] = base64.b64decode(value["content"])
                elif said["key"] == "deletedFile":
                    del files[said["value"]["path"]]
            commit = hashlib.sha1(sent).hexdigest()
            self.server.files[commit], self.server.refs["main"] = files, commit
            answer = {"commitUrl": f"{self.server.url}/{REPO}/commit/{commit}", "commitOid": commit}
        self._send(200, json.dumps(answer).encode(), Content_Type="application/json")

    def _chunks(self) -> bytes:
        """A body that is sent in chunks (RFC 9112, section 7.1)."""
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(path)
        if self.server.error:
            status, code = self.server.error
            self._send(status, b"{}", X_Error_Code=code)
            return
        if REPO not in path:
            self._send(404, b"{}", X_Error_Code="RepoNotFound")
            return
        rest = path.partition(REPO)[2].strip("/").split("/")
        revision = rest[1] if len(rest) > 1 else "main"
        commit = self.server.refs.get(revision, revision)
        files = self.server.files.get(commit)
        if files is None:
            self._send(404, b"{}", X_Error_Code="RevisionNotFound")
            return
        if rest[0] == "resolve":
            content = files["/".join(rest[2:])]
            sent = content[::-1] if self.server.damage and self.command == "GET" else content
            self._send(
                200, sent, ETag=f'"{hashlib.sha256(content).hexdigest()}"', X_Repo_Commit=commit
            )
        elif rest[0] == "tree":
            entries = [
                {"type": "file", "path": n, "size": len(c), "oid": "0" * 40}
                for n, c in files.items()
            ]
            self._send(200, json.dumps(entries).encode(), Content_Type="application/json")
        else:
            siblings = [{"rfilename": name, "size": len(c)} for name, c in files.items()]
            body = {"id": REPO, "sha": commit, "siblings": siblings, "private": False, "tags": []}
            body["safetensors"] = {"parameters": {"BF16": 1234}, "total": 1234}
            self._send(200, json.dumps(body).encode(), Content_Type="application/json")
