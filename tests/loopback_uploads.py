"""A hub on 127.0.0.1 that takes what its client sends, and then serves it.

It has the part of the hub's interface that huggingface_hub calls without Xet. A commit appears
only when it is complete: each large file must have arrived before, with its sha256.
"""

import base64
import hashlib
import json
import re
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

from loopback import Hub

LARGE = ".safetensors"  # the end of the names of files that are sent through Git LFS
TOKEN = "hf_secretSecretSecretSecretSecret"


class HubForUploads(Hub):
    """Serves repositories, and takes commits from those who have the token.

    Attributes:
        written: the requests that create or change something, in their order.
        broken: a pattern; requests that contain it are answered with `status`.
    """

    def __init__(self):
        """Start a server without repositories."""
        self.written, self.large = [], {}
        self.broken, self.status = None, 500
        super().__init__()

    def respond(self, request, headers, body):
        """Return (status, headers, content) for a request."""
        method, path = request.split(" ", 1)
        path = unquote(urlsplit(path).path)
        if method in ("GET", "HEAD"):
            status, sent, content = self.answer(path)
            is_theirs = headers.get("Authorization") == f"Bearer {TOKEN}"
            name = "/".join(path.removeprefix("/api/models").split("/")[1:3])
            if self.is_private(name) and not is_theirs:
                return 401, {"X-Error-Code": "RepoNotFound"}, b"{}"
            return status, sent, content
        if path == "/api/validate-yaml":
            return self.as_json({"errors": [], "warnings": []})
        self.written.append(f"{method} {path}")
        if self.broken is not None and re.search(self.broken, path):
            return self.status, {}, b"{}"
        if path.startswith("/upload/"):
            return self.take_large_file(path.removeprefix("/upload/"), body)
        if headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, {}, b"{}"
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        name = re.sub(r"^/(api/models/)?|/(preupload|commit)/main$|\.git/info/.*$", "", path)
        repository = self.repositories[("models", name)]
        if path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            return self.as_json({"files": [self.choose(file) for file in files]})
        if path.endswith("/objects/batch"):
            return self.as_json({"transfer": "basic", "objects": self.list_places(body)})
        return self.commit(repository, name, [json.loads(line) for line in body.splitlines()])

    def is_private(self, name):
        """Tell whether a repository exists and is private."""
        return getattr(self.repositories.get(("models", name)), "private", False)

    def answer_info(self, repository, commit, match):
        """Return the answer of the API about a repository at a commit."""
        status, headers, content = super().answer_info(repository, commit, match)
        told = json.loads(content) | {"private": getattr(repository, "private", False)}
        return status, headers, json.dumps(told).encode()

    def create(self, asked):
        """Create a repository, whose first commit is empty."""
        name = f"{asked['organization']}/{asked['name']}"
        if ("models", name) in self.repositories:
            return 409, {}, b"{}"
        first = hashlib.sha1(name.encode()).hexdigest()
        self.repositories[("models", name)] = SimpleNamespace(
            commits={first: {}}, newest=first, gated=False, private=asked["visibility"] == "private"
        )
        return self.as_json({"url": f"{self.url}/{name}", "name": name})

    def choose(self, file):
        """Say how a file is to be sent."""
        mode = "lfs" if file["path"].endswith(LARGE) else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}

    def list_places(self, body):
        """Say where each large file is to be sent."""
        places = []
        for wanted in json.loads(body)["objects"]:
            upload = {"href": f"{self.url}/upload/{wanted['oid']}"}
            places.append(wanted | {"actions": {"upload": upload}})
        return places

    def take_large_file(self, sha256, content):
        """Keep a large file, if it is the one that was announced."""
        if hashlib.sha256(content).hexdigest() != sha256:
            return 400, {}, b"{}"
        self.large[sha256] = content
        return 200, {}, b""

    def commit(self, repository, name, lines):
        """Make the newest commit of a repository from the lines of the request, or refuse all."""
        files = dict(repository.commits[repository.newest])
        for line in lines:
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit", repository.newest) != (
                repository.newest
            ):
                return 412, {}, b"{}"
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.large:
                    return 400, {}, b"{}"
                files[value["path"]] = self.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        hashes = [(path, hashlib.sha256(content).hexdigest()) for path, content in files.items()]
        new = hashlib.sha1(json.dumps([repository.newest, hashes]).encode()).hexdigest()
        repository.commits[new] = files
        repository.newest = new
        return self.as_json({"commitUrl": f"{self.url}/{name}/commit/{new}", "commitOid": new})
