"""A hub on 127.0.0.1 that also takes what is uploaded to it, as the real client sends it."""

import base64
import hashlib
import json
import re
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

from loopback import Hub

TOKEN = "hf_loopback"
NEW = {".gitattributes": b"*.safetensors filter=lfs\n"}  # what the hub puts into a new repository


class UploadHub(Hub):
    """A hub with repositories that can be created and committed to with the token.

    Attributes:
        writes: the requests that would change something, as (what, repository).
        fail: a word of `writes`; such requests get an error of the server.
    """

    def __init__(self):
        super().__init__()
        self.writes, self.large, self.fail = [], {}, None

    def create(self, name, private, files=NEW):
        """Create a repository of models with a first commit."""
        repository = SimpleNamespace(commits={}, gated=False, private=private)
        self.repositories["models", name] = repository
        self.commit(repository, dict(files))
        return repository

    def files(self, name):
        """Return {path: content} of the newest commit of a repository."""
        repository = self.repositories["models", name]
        return repository.commits[repository.newest]

    @staticmethod
    def commit(repository, files):
        """Make files the newest commit of a repository."""
        sums = [(path, hashlib.sha1(content).hexdigest()) for path, content in files.items()]
        made = json.dumps([len(repository.commits), sums])
        repository.newest = hashlib.sha1(made.encode()).hexdigest()
        repository.commits[repository.newest] = files

    def reply(self, command, path, body):
        """Return (status, headers, content) for a request."""
        path = unquote(urlsplit(path).path)
        if command not in ("POST", "PUT"):
            return super().reply(command, path, body)
        if path == "/api/validate-yaml":
            return self.as_json({"errors": [], "warnings": []})
        routes = {
            "create": r"/api/repos/(create)",
            "preupload": r"/api/models/([^/]+/[^/]+)/preupload/main",
            "batch": r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch",
            "put": r"/(lfs)/.*",
            "commit": r"/api/models/([^/]+/[^/]+)/commit/main",
        }
        for what, pattern in routes.items():
            match = re.fullmatch(pattern, path)
            if match:
                self.writes.append((what, match[1]))
                if self.fail == what:
                    return 400, {"X-Request-Id": "1"}, b'{"error": "not today"}'
                return getattr(self, f"take_{what}")(match[1], path, body)
        return 404, {}, b"{}"

    def take_create(self, _, path, body):
        """Create a repository."""
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if ("models", name) in self.repositories:
            return 409, {}, b"{}"
        private = asked["private"] if "private" in asked else asked["visibility"] == "private"
        self.create(name, private)
        return self.as_json({"url": f"{self.url}/{name}"})

    def take_preupload(self, name, path, body):
        """Say which files are large."""
        files = []
        for file in json.loads(body)["files"]:
            mode = "lfs" if file["path"].endswith(".safetensors") else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
        return self.as_json({"files": files})

    def take_batch(self, name, path, body):
        """Say where large files are to be sent."""
        objects = []
        for large in json.loads(body)["objects"]:
            upload = {"href": f"{self.url}/lfs/{large['oid']}"}
            objects.append(large | {"actions": {"upload": upload}})
        return self.as_json({"transfer": "basic", "objects": objects})

    def take_put(self, name, path, body):
        """Take a large file."""
        self.large[path.removeprefix("/lfs/")] = body
        return 200, {}, b""

    def take_commit(self, name, path, body):
        """Take a commit: all of it, or nothing."""
        repository = self.repositories["models", name]
        files = dict(repository.commits[repository.newest])
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                if value.get("parentCommit") not in (None, repository.newest):
                    return 412, {}, b"{}"
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                content = self.large[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                files[value["path"]] = content
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        self.commit(repository, files)
        url = f"{self.url}/{name}/commit/{repository.newest}"
        return self.as_json({"commitUrl": url, "commitOid": repository.newest})
