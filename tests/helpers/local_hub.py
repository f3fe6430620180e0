"""A Hub on 127.0.0.1 that the real client talks to: repositories, branches, tokens, and faults on request.

    hub = LocalHub()
    subprocess.run(..., env={**os.environ, **hub.environment(tmp_path, token="hf_alice")})

`HF_ENDPOINT` is read when `huggingface_hub` is imported, so the client runs in a process of its own. Content is kept
in memory. Not here: Xet, pull requests.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from helpers.hub_storage import Repository, Stored, card_errors, entry, metadata

# token -> (user, may write)
USERS = {"hf_alice": ("alice", True), "hf_bob": ("bob", True), "hf_reader": ("alice", False)}
LFS_SUFFIXES = (".safetensors", ".png", ".parquet", ".pt", ".pth")


class LocalHub:
    """The server and what it stores, open to the test that owns it.

    Args:
        port (`int`, *optional*, defaults to `0`): 0 takes a free one.
    """

    def __init__(self, port: int = 0):
        self.repositories: dict[str, Repository] = {}  # "models/alice/student"
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []  # "POST /api/repos/create"
        self.faults: list[list] = []
        self.spaces: dict[str, str] = {}  # "alice/student": its SDK
        self.lock = threading.RLock()
        self.start(port)

    def start(self, port: int) -> None:
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fail(self, pattern: str, status: int, times: int = 1) -> None:
        """Answer the next `times` requests like `pattern` ("POST .*/commit/.*") with `status`."""
        self.faults.append([re.compile(pattern), status, times])

    def files(self, repository: str, branch: str = "main") -> dict[str, bytes]:
        """Content of a branch: path -> bytes."""
        stored = self.repositories[repository]
        return {path: file.content for path, file in stored.commits[stored.branches[branch]].items()}

    def environment(self, cache: Path, token: str | None = "hf_alice") -> dict[str, str]:
        """Variables that point a new process to this Hub, with an empty cache of its own."""
        own = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        own |= {"HF_DATASETS_CACHE": str(cache / "datasets"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        return own | ({"HF_TOKEN": token} if token else {})


class _Refusal(Exception):
    def __init__(self, status: int, message: str, code: str = ""):
        self.status, self.message, self.code = status, message, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def log_message(self, *arguments):
        pass

    def answer(self):
        url = urlsplit(self.path)
        line, body = f"{self.command} {url.path}", self.body()
        with self.hub.lock:
            self.hub.requests.append(line)
            try:
                self.raise_fault(line)
                for pattern, function in ROUTES:
                    found = re.fullmatch(pattern, line)
                    if found:
                        parts = {key: unquote(value or "") for key, value in found.groupdict().items()}
                        return function(self, body, parse_qs(url.query), **parts)
                raise _Refusal(404, f"no such route: {line}")
            except _Refusal as refusal:
                headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
                self.send(refusal.status, {"error": refusal.message}, headers)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def raise_fault(self, line: str) -> None:
        for fault in self.hub.faults:
            if fault[2] and fault[0].fullmatch(line):
                fault[2] -= 1
                raise _Refusal(fault[1], "Something went wrong")

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def send(self, status: int, content=b"", headers: dict | None = None, size: int | None = None) -> None:
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        length = str(len(content) if size is None else size)
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": length, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # ---- who may do what -----------------------------------------------------------------------------------------

    def user(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if token and token not in USERS:
            raise _Refusal(401, "Invalid credentials in Authorization header")
        return USERS[token][0] if token else None

    def check_writer(self, owner: str) -> None:
        user = self.user()
        if user is None:
            raise _Refusal(401, "Invalid username or password.")
        token = self.headers["Authorization"].removeprefix("Bearer ").strip()
        if user != owner or not USERS[token][1]:
            raise _Refusal(403, f"You don't have the rights to write under the namespace {owner}")

    def find(self, kind: str, name: str) -> Repository:
        repository = self.hub.repositories.get(f"{kind or 'models'}/{name}")
        if repository is None or (repository.private and self.user() != name.split("/")[0]):
            raise _Refusal(404, "Repository not found", "RepoNotFound")
        return repository

    def find_commit(self, kind: str, name: str, revision: str) -> tuple[str, dict[str, Stored]]:
        repository = self.find(kind, name)
        sha = repository.branches.get(revision or "main", revision)
        if sha not in repository.commits:
            raise _Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha, repository.commits[sha]

    # ---- accounts and repositories -------------------------------------------------------------------------------

    def whoami(self, body, query):
        if self.user() is None:
            raise _Refusal(401, "Invalid username or password.")
        self.send(200, {"type": "user", "name": self.user(), "orgs": [], "auth": {"type": "access_token"}})

    def create(self, body, query):
        asked = json.loads(body)
        if self.user() is None:
            raise _Refusal(401, "Invalid username or password.")
        owner = asked.get("organization") or self.user()
        self.check_writer(owner)
        kind, name = asked.get("type", "model") + "s", f"{owner}/{asked['name']}"
        if kind == "spaces":
            self.hub.spaces[name] = asked["sdk"]
        exists = f"{kind}/{name}" in self.hub.repositories
        if not exists:
            new = self.hub.repositories[f"{kind}/{name}"] = Repository(
                asked.get("visibility") == "private" or asked.get("private") is True
            )
            new.commit("main", {})
        path = name if kind == "models" else f"{kind}/{name}"
        self.send(409 if exists else 200, {"url": f"{self.hub.endpoint}/{path}", "name": name})

    def auth_check(self, body, query, kind, name):
        self.find(kind, name)
        self.check_writer(name.split("/")[0])
        self.send(200, {})

    def branch(self, body, query, kind, name, branch):
        self.check_writer(name.split("/")[0])
        repository = self.find(kind, name)
        if branch in repository.branches:
            raise _Refusal(409, "Reference already exists")
        repository.branches[branch] = repository.branches[json.loads(body).get("startingPoint", "main")]
        self.send(200, {})

    def info(self, body, query, kind, name, revision=""):
        sha, files = self.find_commit(kind, name, revision)
        siblings = [{"rfilename": path} for path in files]
        card = metadata(files["README.md"].content.decode()) if "README.md" in files else {}
        facts = {"id": name, "sha": sha, "private": self.find(kind, name).private, "siblings": siblings, "tags": []}
        self.send(200, {**facts, "cardData": card, "pipeline_tag": card.get("pipeline_tag")})

    def validate(self, body, query):
        errors = [{"message": message} for message in card_errors(metadata(json.loads(body)["content"]))]
        self.send(400 if errors else 200, {"errors": errors, "warnings": []})

    def tree(self, body, query, kind, name, revision, folder):
        _, files = self.find_commit(kind, name, revision)
        folder = folder.strip("/") and folder.strip("/") + "/"
        inside = {path: file for path, file in files.items() if path.startswith(folder)}
        if folder and not inside:
            raise _Refusal(404, f"{folder} does not exist", "EntryNotFound")
        deep = query.get("recursive", [""])[0].lower() == "true"
        parents = {parent.as_posix() for path in inside for parent in Path(path).parents} - {".", folder.rstrip("/")}
        shown = [path for path in (*parents, *inside) if deep or "/" not in path.removeprefix(folder)]
        self.send(200, [entry(path, files.get(path)) for path in sorted(shown)])

    def paths_info(self, body, query, kind, name, revision):
        _, files = self.find_commit(kind, name, revision)
        asked = parse_qs(body.decode())["paths"] if body[:1] != b"{" else json.loads(body)["paths"]
        folders = {parent.as_posix() for path in files for parent in Path(path).parents}
        self.send(200, [entry(path, files.get(path)) for path in asked if path in files or path in folders])

    # ---- upload: preupload, objects, commit ----------------------------------------------------------------------

    def preupload(self, body, query, kind, name, revision):
        self.check_writer(name.split("/")[0])
        self.find_commit(kind, name, revision)
        paths = [file["path"] for file in json.loads(body)["files"]]
        modes = ["lfs" if path.endswith(LFS_SUFFIXES) else "regular" for path in paths]
        answers = zip(paths, modes, strict=True)
        self.send(200, {"files": [{"path": x, "uploadMode": mode, "shouldIgnore": False} for x, mode in answers]})

    def lfs_batch(self, body, query, kind, name):
        self.check_writer(name.split("/")[0])
        objects = [{"oid": x["oid"], "size": x["size"]} for x in json.loads(body)["objects"]]
        for item in objects:
            if item["oid"] not in self.hub.objects:
                item["actions"] = {"upload": {"href": f"{self.hub.endpoint}/_objects/{item['oid']}"}}
        self.send(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, body, query, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Refusal(400, "Content does not match its hash")
        self.hub.objects[oid] = body
        self.send(200)

    def commit(self, body, query, kind, name, revision):
        self.check_writer(name.split("/")[0])
        files = dict(self.find_commit(kind, name, revision)[1])
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = Stored(base64.b64decode(value["content"]), lfs=False)
            elif operation["key"] == "lfsFile":
                files[value["path"]] = Stored(self.hub.objects[value["oid"]], lfs=True)
            elif operation["key"] in ("deletedFile", "deletedFolder"):
                gone = value["path"].rstrip("/")
                files = {path: x for path, x in files.items() if path != gone and not path.startswith(gone + "/")}
        sha = self.find(kind, name).commit(revision, files)
        self.send(200, {"commitOid": sha, "commitUrl": f"{self.hub.endpoint}/{name}/commit/{sha}"})

    # ---- download ------------------------------------------------------------------------------------------------

    def resolve(self, body, query, kind, name, revision, path):
        sha, files = self.find_commit(kind.strip("/"), name, revision)
        if path not in files:
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha}
            return self.send(404, {"error": "Entry not found"}, headers)
        file = files[path]
        tag = f'"{file.sha256 if file.lfs else file.oid}"'
        headers = {"X-Repo-Commit": sha, "ETag": tag}
        if file.lfs:
            headers |= {"X-Linked-Etag": tag, "X-Linked-Size": str(len(file.content))}
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if part and self.command == "GET":
            start, stop = int(part[1]), min(int(part[2]) + 1, len(file.content))
            headers |= {"Content-Range": f"bytes {start}-{stop - 1}/{len(file.content)}"}
            return self.send(206, file.content[start:stop], headers)
        self.send(200, file.content, headers)


_API, _FILE = (
    r"/api/(?P<kind>models|datasets|spaces)/(?P<name>[^/]+/[^/]+)",
    r"/(?P<kind>datasets/|spaces/)?(?P<name>[^/]+/[^/]+)",
)
ROUTES = [
    (r"GET /api/whoami-v2", _Handler.whoami),
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.validate),
    (rf"GET {_API}/auth-check/write", _Handler.auth_check),
    (rf"POST {_API}/branch/(?P<branch>.+)", _Handler.branch),
    (rf"POST {_API}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    (rf"POST {_API}/commit/(?P<revision>[^/]+)", _Handler.commit),
    (rf"POST {_API}/paths-info/(?P<revision>[^/]+)", _Handler.paths_info),
    (rf"GET {_API}/tree/(?P<revision>[^/]+)(?P<folder>/.*)?", _Handler.tree),
    (rf"GET {_API}/revision/(?P<revision>[^/]+)", _Handler.info),
    (rf"GET {_API}", _Handler.info),
    (rf"POST {_FILE}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (r"PUT /_objects/(?P<oid>[0-9a-f]{64})", _Handler.lfs_put),
    (rf"(GET|HEAD) {_FILE}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
]
