"""A server that plays the Hugging Face hub, as far as `moebius pull` (and Python's huggingface_hub) talks to it, with faults.

Two servers: the hub itself, and the host where large files are kept, to which the hub redirects. What happens to which file is said
by `faults`: {path: [fault, fault, ...]}, one used up by each GET of its content; what was asked is in `seen`.
"""

import hashlib
import json
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote, urlsplit

LISTING = "(listing)"  # a "path" for faults of the listing


def git_sha1(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class File:
    def __init__(self, data, lfs):
        self.data, self.lfs = data, lfs
        self.etag = hashlib.sha256(data).hexdigest() if lfs else git_sha1(data)


class Hub:
    """`files`: {path: bytes}; those over 1000 bytes are kept by LFS on the other host."""

    def __init__(self, files, name="org/model", tls=None):
        self.name, self.tls = name, tls
        self.faults, self.seen, self.lock = {}, [], threading.Lock()
        self.change(files)
        self.hub = self.start()
        self.store = self.start()

    def change(self, files):
        self.files = {path: File(data, len(data) > 1000) for path, data in files.items()}
        everything = "".join(f"{path} {file.etag}\n" for path, file in sorted(self.files.items()))
        self.commit = hashlib.sha1(everything.encode()).hexdigest()

    def start(self):
        hub = self

        class Handler(HubHandler):
            owner = hub

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        if self.tls:
            server.socket = self.tls.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server

    def close(self):
        for server in (self.hub, self.store):
            server.shutdown()
            server.server_close()

    @property
    def scheme(self):
        return "https" if self.tls else "http"

    @property
    def endpoint(self):
        return f"{self.scheme}://127.0.0.1:{self.hub.server_port}"

    def listing(self):
        siblings = []
        for path, file in self.files.items():
            entry = {"rfilename": path, "size": len(file.data), "blobId": git_sha1(b"pointer " + file.etag.encode()) if file.lfs else file.etag}
            if file.lfs:
                entry["lfs"] = {"sha256": file.etag, "size": len(file.data), "pointerSize": 134}
            siblings.append(entry)
        return {"id": self.name, "sha": self.commit, "siblings": siblings, "gated": False}

    def fault(self, path):
        with self.lock:
            faults = self.faults.get(path)
            return faults.pop(0) if faults else None

    def asked(self, what):
        return [request for request in self.seen if what in request["path"]]


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner = None

    def log_message(self, *arguments):
        pass

    def answer(self, status, headers=(), body=b""):
        self.send_response(status)
        for key, value in dict(headers).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        try:
            self.route()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def route(self):
        hub, parts = self.owner, urlsplit(self.path)  # a proxy is asked for whole URLs
        path = unquote(parts.path)
        at_store = self.server is hub.store
        hub.seen.append({"path": path, "store": at_store, "method": self.command, "token": self.headers.get("Authorization"),
                         "range": self.headers.get("Range"), "proxied": self.path.startswith("http")})
        if at_store:
            return self.content(path.removeprefix("/"))
        if path.startswith(f"/api/models/{hub.name}"):
            return self.list()
        found = re.fullmatch(rf"/{hub.name}/resolve/([^/]+)/(.+)", path)
        if not found:
            return self.answer(404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        self.resolve(*found.groups())

    def list(self):
        fault = self.owner.fault(LISTING)
        if callable(fault):
            return fault(self)
        body = fault if isinstance(fault, bytes) else json.dumps(self.owner.listing()).encode()
        self.answer(200, {"Content-Type": "application/json"}, body)

    def resolve(self, revision, path):
        hub, file = self.owner, self.owner.files.get(path)
        if not file or revision not in (hub.commit, "main"):
            return self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": hub.commit})
        headers = {"X-Repo-Commit": hub.commit, "Accept-Ranges": "bytes"}
        if not file.lfs:
            return self.content(path, {**headers, "ETag": f'"{file.etag}"'})
        target = f"{hub.scheme}://localhost:{hub.store.server_port}/{quote(path)}?signature=secret"
        fault = hub.fault("302 " + path)
        headers.update({"X-Linked-Etag": f'"{fault if fault and len(fault) == 64 else file.etag}"', "X-Linked-Size": str(len(file.data))})
        self.answer(302, {**headers, "Location": fault if fault and len(fault) != 64 else target})

    def content(self, path, headers=()):
        """A file's bytes, or what `faults` says instead."""
        hub = self.owner
        data = hub.files[path].data
        fault = hub.fault(path) if self.command == "GET" else None
        if callable(fault):
            return fault(self)
        begin = 0
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if found and fault != "no range":
            begin = int(found.group(1))
        status, size = (206 if begin else 200), len(data) - begin
        if begin >= len(data) > 0 or fault == "416":
            return self.answer(416)
        if fault == "wrong":
            data = bytes([data[0] ^ 1]) + data[1:-1] + bytes([data[-1] ^ 1])
        if fault == "other part":
            begin, status, size = 0, 206, len(data)
        if fault == "more":
            data += b"more"
            size += 4
        self.send_response(status)
        for key, value in dict(headers).items():
            self.send_header(key, value)
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(size))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.send_body(data[begin:], fault)

    def send_body(self, body, fault):
        kind, _, number = fault.partition(" ") if isinstance(fault, str) else ("", "", "")
        if kind == "cut":  # after so many bytes
            self.wfile.write(body[: int(number)])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif kind == "stall":  # after so many bytes, for ten seconds
            self.wfile.write(body[: int(number)])
            self.wfile.flush()
            time.sleep(10)
            self.close_connection = True
        elif kind == "slow":  # so many bytes a second
            step = max(1, int(number) // 50)
            for at in range(0, len(body), step):
                self.wfile.write(body[at : at + step])
                time.sleep(0.02)
        else:
            self.wfile.write(body)


def status(code, **headers):
    """A fault: the answer is this status."""
    return lambda handler: handler.answer(code, {key.replace("_", "-"): value for key, value in headers.items()})
