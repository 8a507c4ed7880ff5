"""As much of the Hugging Face hub as models need: made, filled with commits, looked up, fetched. For tests."""

import base64
import contextlib
import hashlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from huggingface_hub import constants


class FakeHub(ThreadingHTTPServer):
    """`models[name][branch]` is a list of commits, each {path: bytes}; a commit's id is made of its number."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.models, self.blobs, self.private, self.requests = {}, {}, set(), []
        self.connections = []
        self.address = f"http://127.0.0.1:{self.server_port}"

    def server_close(self):
        super().server_close()
        for connection in self.connections:  # those that are open would go on being answered
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def files(self, name, revision="main"):
        """The id and the files of a commit, which is named by branch or by id; None if there is none."""
        for branch, commits in self.models.get(name, {}).items():
            for number, files in enumerate(commits):
                commit = hashlib.sha1(f"{name} {branch} {number}".encode()).hexdigest()
                if revision == commit or (revision == branch and number == len(commits) - 1):
                    return commit, files
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def setup(self):
        super().setup()
        self.server.connections.append(self.connection)

    def log_message(self, format, *args):  # noqa: A002 - the name in http.server
        self.server.requests.append(f"{self.command} {self.path}")

    def answer(self, content=b"", status=200, **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, code, status=404):
        self.answer({"error": code}, status, X_Error_Code=code, X_Error_Message=code)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_PUT(self):
        self.server.blobs[self.path.rpartition("/")[2]] = self.body()
        self.answer()

    def do_POST(self):
        hub, parts, body = self.server, self.path.strip("/").split("/"), self.body()
        if self.headers.get("Authorization") != "Bearer good":
            return self.refuse("Unauthorized", 401)
        if parts[:3] == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'someone'}/{asked['name']}"
            if name in hub.models:
                return self.answer({"url": f"{hub.address}/{name}"}, 409)
            hub.models[name] = {"main": [{}]}
            hub.private |= {name} if asked.get("private") or asked.get("visibility") == "private" else set()
            return self.answer({"url": f"{hub.address}/{name}", "id": name})
        if parts == ["api", "validate-yaml"]:  # of a model's page
            return self.answer({"errors": [], "warnings": []})
        if parts[-3:] == ["lfs", "objects", "batch"]:
            objects = json.loads(body)["objects"]
            actions = [{"upload": {"href": f"{hub.address}/blobs/{each['oid']}"}} for each in objects]
            made = [{**each, "actions": action} for each, action in zip(objects, actions, strict=True)]
            return self.answer({"transfer": "basic", "objects": made}, Content_Type="application/vnd.git-lfs+json")
        name, action, branch = "/".join(parts[2:4]), parts[4], parts[5]
        if name not in hub.models:
            return self.refuse("RepoNotFound")
        if action == "branch":
            hub.models[name][branch] = list(hub.models[name]["main"])
            return self.answer({})
        if branch not in hub.models[name]:
            return self.refuse("RevisionNotFound")
        if action == "preupload":
            files = json.loads(body)["files"]
            modes = ["lfs" if each["path"].endswith(".safetensors") else "regular" for each in files]
            told = [
                {**each, "uploadMode": mode, "shouldIgnore": False} for each, mode in zip(files, modes, strict=True)
            ]
            return self.answer({"files": told})
        files = dict(hub.models[name][branch][-1])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                files[value["path"]] = hub.blobs[value["oid"]]
        hub.models[name][branch].append(files)
        commit, _ = hub.files(name, branch)
        self.answer({"commitUrl": f"{hub.address}/{name}/commit/{commit}", "commitOid": commit, "success": True})

    def do_GET(self):
        hub, parts = self.server, self.path.partition("?")[0].strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        if len(parts) < 4:  # of the hub as a whole, not of a model
            return self.refuse("EntryNotFound")
        name = "/".join(parts[2:4] if api else parts[:2])
        revision = parts[5] if api and len(parts) > 5 else "main" if api else parts[3]
        if name not in hub.models:
            return self.refuse("RepoNotFound", 401)
        found = hub.files(name, revision)
        if found is None:
            return self.refuse("RevisionNotFound")
        commit, files = found
        if api and parts[4:5] == ["tree"]:
            kinds = {"type": "file", "oid": commit}
            return self.answer([{**kinds, "path": path, "size": len(content)} for path, content in files.items()])
        if api:
            siblings = [{"rfilename": path} for path in files]
            return self.answer({"id": name, "sha": commit, "siblings": siblings, "private": name in hub.private})
        content = files.get("/".join(parts[4:]))
        if content is None:
            return self.refuse("EntryNotFound")
        self.answer(content, X_Repo_Commit=commit, ETag=f'"{hashlib.sha256(content).hexdigest()}"')

    do_HEAD = do_GET  # noqa: N815


@contextlib.contextmanager
def serving_hub(patch, cache):
    """A hub that the library takes for the real one; what it fetches goes into `cache`."""
    hub = FakeHub()
    patch.setattr(constants, "ENDPOINT", hub.address)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setenv("HF_TOKEN", "good")
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join(10)
