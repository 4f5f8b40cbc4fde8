"""A Hugging Face hub with one repository, on this machine, that can misbehave."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import pathlib
import threading

COMMIT = "a" * 40


@contextlib.contextmanager
def serve(folder: pathlib.Path, fault: str | None = None):
    """Yields (endpoint, paths asked for): org/name is `folder`; org/gated and org/broken answer with errors."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            self.answer()

        def answer(self):
            path = self.path.split("?")[0].strip("/")
            asked.append(f"{self.command} {path}")
            if "org/gated" in path:
                self.send(403, b"", {"X-Error-Code": "GatedRepo"})
            elif "org/broken" in path:
                self.send(500, b"")
            elif "org/name/revision/old" in path:
                self.send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            elif path.startswith("api/models/org/name/tree"):
                self.send(200, json.dumps([self.entry(file) for file in self.files()]).encode())
            elif path.startswith("api/models/org/name"):
                siblings = [{"rfilename": str(file.relative_to(folder))} for file in self.files()]
                self.send(200, json.dumps({"id": "org/name", "sha": COMMIT, "siblings": siblings}).encode())
            elif path.startswith("org/name/resolve/"):
                self.file(folder / path.split("/", 4)[4])
            else:
                self.send(404, b"", {"X-Error-Code": "RepoNotFound"})

        def files(self):
            return sorted(file for file in folder.rglob("*") if file.is_file())

        def entry(self, file):
            size = file.stat().st_size
            return {"type": "file", "path": str(file.relative_to(folder)), "size": size, "oid": self.etag(file)}

        def etag(self, file):
            return hashlib.sha1(file.read_bytes()).hexdigest()

        def file(self, file):
            if not file.is_file():
                self.send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
                return
            data = file.read_bytes()
            headers = {"ETag": f'"{self.etag(file)}"', "X-Repo-Commit": COMMIT}
            if fault == "short" and self.command == "GET" and file.suffix == ".safetensors":
                self.send(200, data[: len(data) // 2], headers, length=len(data))
                self.close_connection = True
            else:
                self.send(200, data, headers)

        def send(self, code, body, headers=None, length=None):
            self.send_response(code)
            for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
