"""A small hub on loopback: enough of its HTTP interface for huggingface_hub to list and fetch a repository's files."""

import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".parquet")


def commit_of(files: dict[str, bytes]) -> str:
    """40 hex digits that stand for these files."""
    listed = [(name, hashlib.sha256(data).hexdigest()) for name, data in sorted(files.items())]
    return hashlib.sha1(json.dumps(listed).encode(), usedforsecurity=False).hexdigest()


class Hub(ThreadingHTTPServer):
    """Repositories by (kind, name) and commit; what was asked for; and what goes wrong with which file."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.commits: dict[tuple[str, str], dict[str, dict[str, bytes]]] = {}
        self.main: dict[tuple[str, str], str] = {}
        self.asked: list[tuple[str, str, str]] = []  # method, path, Range
        self.tokens: set[str | None] = set()
        self.gated: set[str] = set()
        self.stalled: set[str] = set()  # files of which the second half never comes
        self.cut: set[str] = set()  # files whose connection breaks in the middle, once
        self.damaged: set[str] = set()  # files of which other bytes are sent than listed
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def put(self, kind: str, name: str, files: dict[str, bytes]) -> str:
        """A new commit with exactly these files, to which `main` then points."""
        commit = commit_of(files)
        self.commits.setdefault((kind, name), {})[commit] = files
        self.main[kind, name] = commit
        return commit

    def fetched(self) -> list[str]:
        """Names of the files whose content was sent, in order."""
        return [path.rsplit("/", 1)[-1] for method, path, _ in self.asked if method == "GET" and "/resolve/" in path]

    def handle_error(self, request, client_address):
        """A client that goes away is no error of the test."""


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Nothing."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        self.server.asked.append((self.command, path, self.headers.get("Range", "")))
        self.server.tokens.add(self.headers.get("Authorization"))
        words = path.strip("/").split("/")
        api = words[0] == "api"
        kind = "dataset" if words[api] == "datasets" else "model"
        rest = words[2:] if api else words[kind == "dataset" :]
        name, verb, revision, file = "/".join(rest[:2]), rest[2], rest[3], "/".join(rest[4:])
        if (kind, name) not in self.server.commits:
            return self.error(404, "RepoNotFound")
        if name in self.server.gated and self.headers.get("Authorization") != "Bearer hf_secret":
            return self.error(403, "GatedRepo")
        commit = self.server.main[kind, name] if revision == "main" else revision
        files = self.server.commits[kind, name].get(commit)
        if files is None:
            return self.error(404, "RevisionNotFound")
        if verb == "revision":
            return self.answer(json.dumps({"id": name, "sha": commit, "siblings": [], "tags": []}).encode())
        if verb == "tree":
            return self.answer(json.dumps([listed(path, data) for path, data in files.items()]).encode())
        if file not in files:
            return self.error(404, "EntryNotFound")
        return self.send(file, files[file], commit)

    def send(self, name, data, commit):
        entry = listed(name, data)
        etag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if name in self.server.damaged:
            data = data[:-1] + bytes([data[-1] ^ 1])
        status, start = 200, 0
        if asked := self.headers.get("Range"):
            status, start = 206, int(asked.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if self.command == "GET" and name in self.server.cut:
            self.server.cut.remove(name)
            self.start(status, headers, len(data) - start)
            self.wfile.write(data[start : len(data) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        if self.command == "GET" and name in self.server.stalled:
            self.start(status, headers, len(data) - start)
            self.wfile.write(data[start : len(data) // 2])
            while name in self.server.stalled:
                time.sleep(0.05)
            return
        self.answer(data[start:], status, headers)

    def start(self, status, headers, length):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def answer(self, data, status=200, headers=None):
        self.start(status, headers or {"Content-Type": "application/json"}, len(data))
        if self.command == "GET":
            self.wfile.write(data)

    def error(self, status, code):
        self.answer(b'{"error": "no"}', status, {"X-Error-Code": code, "X-Error-Message": code})


def listed(path: str, data: bytes) -> dict:
    """A file as the hub's listing has it: git's digest, and for a large one the SHA-256 of what it stands for."""
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    entry = {"type": "file", "path": path, "size": len(data), "oid": blob}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry
