"""A hub on 127.0.0.1 that serves folders as the repositories of models and datasets.

It writes down the requests that it gets.
"""

import gzip
import hashlib
import json
import re
import shutil
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import torch
from safetensors.torch import load_file

PATHS = {  # the kind of a request, and the path that asks for it
    "info": r"/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/([^/]+))?",
    "tree": r"/api/(models|datasets)/([^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?",
    "file": r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)",
}


class Hub:
    """Serves repositories until it is closed.

    As a proxy, it also writes down and refuses requests that go to other hosts.

    Attributes:
        fault: (pattern, status, headers, content): the answer to paths that contain the pattern.
        silent: a pattern; requests that contain it get no answer before the hub is closed.
    """

    def __init__(self, certificate=None):
        """Start a server; with a file of a certificate and its key it speaks TLS."""
        self.repositories, self.requests = {}, []
        self.fault = self.silent = None
        self.closing = threading.Event()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            """Answers one connection."""

            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments):
                """Print nothing."""

            def handle_request(self):
                """Log the request and answer it."""
                body = self.read_body()
                request = f"{self.command} {self.path}"
                hub.requests.append(request)
                if hub.silent is not None and re.search(hub.silent, request):
                    hub.closing.wait()
                status, headers, content = hub.respond(request, self.headers, body)
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            def read_body(self):
                """Read what was sent, at once or in chunks."""
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length", 0)))
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_CONNECT = handle_request

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
            self.url = self.url.replace("http:", "https:")
        serve = self.server.serve_forever
        threading.Thread(target=serve, args=(0.02,), daemon=True).start()  # closes within 20 ms

    def close(self):
        """End the server."""
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def publish(self, kind, name, folder, gated=False):
        """Make a folder the newest commit of a repository of `models` or `datasets`.

        Returns the commit's hash.
        """
        files = {}
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                files[path.relative_to(folder).as_posix()] = path.read_bytes()
        hashes = [(path, hashlib.sha256(content).hexdigest()) for path, content in files.items()]
        commit = hashlib.sha1(json.dumps([name, hashes]).encode()).hexdigest()
        new = SimpleNamespace(commits={}, gated=gated)
        repository = self.repositories.setdefault((kind, name), new)
        repository.newest = commit
        repository.commits[commit] = files
        return commit

    def respond(self, request, headers, body):
        """Return (status, headers, content) for a request, of which the path alone counts."""
        return self.answer(request.split(" ", 1)[1])

    def answer(self, path):
        """Return (status, headers, content) for a path."""
        path = unquote(urlsplit(path).path)
        if self.fault is not None and re.search(self.fault[0], path):
            return self.fault[1:]
        for request, pattern in PATHS.items():
            match = re.fullmatch(pattern, path)
            if not match:
                continue
            kind = match[1].strip("/") if match[1] else "models"
            repository = self.repositories.get((kind, match[2]))
            if repository is None:  # the hub says the same of unknown and of private names
                return 401, {"X-Error-Code": "RepoNotFound"}, b"{}"
            commit = repository.newest if match[3] in (None, "main") else match[3]
            if commit not in repository.commits:
                return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
            return getattr(self, f"answer_{request}")(repository, commit, match)
        return 404, {}, b"{}"

    def answer_info(self, repository, commit, match):
        """Return the answer of the API about a repository at a commit."""
        siblings = [{"rfilename": path} for path in repository.commits[commit]]
        return self.as_json({
            "id": match[2], "sha": commit, "private": False, "gated": repository.gated, "tags": [],
            "disabled": False, "downloads": 0, "likes": 0, "siblings": siblings,
        })

    def answer_tree(self, repository, commit, match):
        """Return the answer of the API about the files of a commit, or of a folder in it."""
        entries = []
        for path, content in repository.commits[commit].items():
            if match[4] and not path.startswith(f"{match[4]}/"):
                continue
            sha1 = hashlib.sha1(content).hexdigest()
            entries.append({"type": "file", "path": path, "size": len(content), "oid": sha1})
        if match[4] and not entries:
            return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
        return self.as_json(entries)

    def answer_file(self, repository, commit, match):
        """Return a file, or an error if it does not exist or is gated."""
        headers = {"X-Repo-Commit": commit}
        if repository.gated:
            return 403, headers | {"X-Error-Code": "GatedRepo"}, b"{}"
        if match[4] not in repository.commits[commit]:
            return 404, headers | {"X-Error-Code": "EntryNotFound"}, b"{}"
        content = repository.commits[commit][match[4]]
        return 200, headers | {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'}, content

    @staticmethod
    def as_json(data):
        """Return an answer with JSON data."""
        return 200, {"Content-Type": "application/json"}, json.dumps(data).encode()


def lay_out(demo, folder):
    """Write the demo's stand-ins into a folder in the hub's layout.

    Returns {(kind, name): its folder}.
    """
    places = {
        ("models", "facebook/opt-350m"): folder / "opt",
        ("datasets", "Anthropic/hh-rlhf"): folder / "hh-rlhf",
        ("models", "OpenAssistant/reward-model-deberta-v3-large-v2"): folder / "judge",
    }
    for source, place in (("opt", "opt"), ("reward-model", "judge")):
        shutil.copytree(demo / source, folder / place)
        weights = load_file(folder / place / "model.safetensors")
        (folder / place / "model.safetensors").unlink()
        torch.save(weights, folder / place / "pytorch_model.bin")  # the base's are fp16
        for unwanted in ("README.md", "tf_model.h5", "flax_model.msgpack"):
            (folder / place / unwanted).write_bytes(b"Not what a run needs.")
    config = json.loads((folder / "opt" / "config.json").read_text())
    (folder / "opt" / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    shutil.copytree(demo / "hh-rlhf", folder / "hh-rlhf")
    (folder / "hh-rlhf" / "README.md").write_text("---\nlicense: mit\n---\n")
    for subset in ("helpful-online", "helpful-rejection-sampled"):
        shutil.copytree(demo / "hh-rlhf" / "helpful-base", folder / "hh-rlhf" / subset)
    attempts = folder / "hh-rlhf" / "red-team-attempts" / "red_team_attempts.jsonl.gz"
    attempts.parent.mkdir()
    attempts.write_bytes(gzip.compress(b'{"transcript": "Hi", "rating": 3}\n', mtime=0))
    return places
