"""A Hugging Face hub with one repository, on this machine, that can misbehave, and processes that use it."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Mapping

COMMIT = "a" * 40
BRANCH = "b" * 40  # the commit of any other branch
LICENCE = "creativeml-openrail-m"
WEIGHTS = (".safetensors", ".h5", ".bin", ".ckpt")
# The longest that anything here may take, in seconds.
GUARD = 120
# Says in one line on stdout what came of opening a model; its arguments are those of `open_model`.
OPEN = """
import json, sys
from kerasdiff.errors import ModelError
from kerasdiff.checkpoints.resolve import open_model
try:
    for _ in range(2):
        model = open_model(sys.argv[1], **json.loads(sys.argv[2]))
    print(model.name, model.config.unet.widths, "tensorflow" in sys.modules)
except ModelError as error:
    print("ModelError", error)
"""


def start(home: pathlib.Path, endpoint: str, *command: str, **environment: str) -> subprocess.Popen:
    """A Python process with a cache and an endpoint of its own."""
    variables = {
        "HF_HOME": str(home / "cache"),
        "KERASDIFF_CACHE": str(home / "markers"),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DOWNLOAD_TIMEOUT": "3",
    }
    # Not those of whoever runs the tests.
    others = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-W", "default::UserWarning:kerasdiff.checkpoints.resolve", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**others, **variables, **environment},
    )


def start_opening(home: pathlib.Path, endpoint: str, model: str, *, arguments: dict | None = None, **environment: str):
    """A process that opens a model; see `OPEN`."""
    return start(home, endpoint, "-c", OPEN, model, json.dumps(arguments or {}), **environment)


def line_of(process: subprocess.Popen) -> str:
    """The only line on a process's stdout, once it ended."""
    return lines_of(process)[0]


def lines_of(process: subprocess.Popen) -> tuple[str, str]:
    """The only line on a process's stdout, and its stderr."""
    try:
        out, err = process.communicate(timeout=GUARD)
    finally:
        process.kill()
    assert process.returncode == 0, err
    (line,) = out.splitlines()
    return line, err


@contextlib.contextmanager
def serve(
    folder: pathlib.Path,
    fault: str | None = None,
    times: int | None = None,
    ranges: bool = True,
    gate: threading.Event | None = None,
    closed: bool = False,
    others: Mapping[str, pathlib.Path] | None = None,
):
    """Yields (endpoint, requests so far).

    The repository org/name is `folder`, and so is org/bare, whose page states no licence; org/gated, org/broken and
    org/silent answer with an error or not at all.

    Args:
        folder: the repository's files.
        fault: what happens to weights: "short", "stall" and "close" break off, "flip" changes a byte, and a status
            ("429") or one with a header ("429 Retry-After: 3600") is answered instead.
        times: how many requests for weights it happens to; None is all.
        ranges: whether a request for the rest of a file gets the rest, or the whole file.
        gate: what weights wait for.
        closed: whether a status as the fault is the answer to everything.
        others: more repositories, by name or, of a branch, by "name@branch".
    """
    others = others or {}
    asked: list[str] = []
    left = [times]
    lock = threading.Lock()
    over = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            self.answer()

        def answer(self):
            path = self.path.split("?")[0].strip("/")
            asked.append(f"{self.command} {path}" + (f" {self.headers['Range']}" if "Range" in self.headers else ""))
            repository = "/".join(path.split("/")[2:4] if path.startswith("api/models") else path.split("/")[:2])
            if closed:
                self.refuse(fault)
            elif repository == "org/gated":
                self.send(403, b"", {"X-Error-Code": "GatedRepo"})
            elif repository == "org/broken":
                self.send(500, b"")
            elif repository == "org/silent":
                over.wait()
            elif repository not in ("org/name", "org/bare", *others):
                self.send(404, b"", {"X-Error-Code": "RepoNotFound"})
            elif path.endswith("revision/old"):
                self.send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            elif path.startswith(f"api/models/{repository}/tree"):
                self.send(200, json.dumps([self.entry(file) for file in self.files()]).encode())
            elif path.startswith("api/models"):
                siblings = [{"rfilename": str(file.relative_to(self.root()))} for file in self.files()]
                card = {"license": LICENCE} if repository == "org/name" else {}
                commit = BRANCH if self.branch() else COMMIT
                about = {"id": repository, "sha": commit, "siblings": siblings, "cardData": card}
                self.send(200, json.dumps(about).encode())
            else:
                self.file(self.root() / urllib.parse.unquote(path.split("/", 4)[4]))

        def branch(self):
            parts = self.path.split("?")[0].strip("/").removeprefix("api/models/").split("/")
            repository = "/".join(parts[:2])
            named = [name for name in others if name.startswith(f"{repository}@")]
            return next((name for name in named if {BRANCH, name.partition("@")[2]} & set(parts[2:])), None)

        def root(self):
            path = self.path.split("?")[0].strip("/").removeprefix("api/models/")
            return others.get(self.branch() or "/".join(path.split("/")[:2]), folder)

        def files(self):
            return sorted(file for file in self.root().rglob("*") if file.is_file())

        def entry(self, file):
            size = file.stat().st_size
            return {"type": "file", "path": str(file.relative_to(self.root())), "size": size, "oid": self.etag(file)}

        def etag(self, file):
            return (hashlib.sha256 if file.suffix in WEIGHTS else hashlib.sha1)(file.read_bytes()).hexdigest()

        def file(self, file):
            if not file.is_file():
                self.send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
                return
            data = file.read_bytes()
            commit = BRANCH if self.branch() else COMMIT
            headers = {"ETag": f'"{self.etag(file)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
            code, start = 200, 0
            if ranges and "Range" in self.headers:
                code, start = 206, int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            body = data[start:]
            if gate is not None and self.command == "GET" and file.suffix in WEIGHTS:
                gate.wait(GUARD)
            wrong = self.fault() if self.command == "GET" and file.suffix in WEIGHTS else None
            if wrong is None:
                self.send(code, body, headers)
            elif wrong == "flip":
                self.send(code, body[:-1] + bytes([body[-1] ^ 1]), headers)
            elif wrong == "close":
                self.close_connection = True
            elif wrong in ("short", "stall"):
                self.send(code, body[: len(body) // 2], headers, length=len(body))
                self.close_connection = True
                if wrong == "stall":
                    over.wait()
            else:
                self.refuse(wrong)

        def refuse(self, wrong):
            status, _, header = wrong.partition(" ")
            self.send(int(status), b"", dict([header.split(": ")]) if header else {})

        def fault(self):
            with lock:
                if left[0] is None:
                    return fault
                left[0] -= 1
                return fault if left[0] >= 0 else None

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

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *request):
            # A client that gave up is what some tests are about.
            if not isinstance(sys.exception(), ConnectionError):
                super().handle_error(*request)

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        over.set()
        server.shutdown()
        server.server_close()
