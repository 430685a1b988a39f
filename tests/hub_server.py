"""A small server that speaks the file API of the Hugging Face Hub, for its real client."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

ERRORS = {"gated": (403, "GatedRepo"), "revision": (404, "RevisionNotFound"), "repository": (401, "RepoNotFound")}


class Hub(ThreadingHTTPServer):
  """Attributes:
  repositories: {repository: {revision: {file: bytes}}}. gated: repositories that nobody may enter.
  cuts: how many more answers with weights break off in the middle. asked: (method, path) of all requests.
  """

  daemon_threads = True

  def __init__(self):
    super().__init__(("127.0.0.1", 0), _Handler)
    self.repositories, self.gated, self.cuts, self.asked = {}, set(), 0, []

  @property
  def address(self) -> str:
    return f"http://127.0.0.1:{self.server_port}"

  @property
  def store(self) -> str:
    """Where redirects lead: to another host by its name, as the Hub's do."""
    return f"http://localhost:{self.server_port}"

  def commit(self, repository: str, revision: str) -> str | None:
    """The hash of what a revision holds; None where there is no such revision."""
    for name, files in self.repositories[repository].items():
      sha = hashlib.sha1(repr((repository, name, sorted(files.items()))).encode()).hexdigest()
      if revision in (name, sha):
        return sha
    return None

  def files(self, repository: str, sha: str) -> dict[str, bytes]:
    names = self.repositories[repository]
    return next(names[name] for name in names if self.commit(repository, name) == sha)


class _Handler(BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"

  def do_HEAD(self):
    self._answer()

  def do_GET(self):
    self._answer()

  def log_message(self, *_):
    pass

  def _answer(self):
    self.server.asked.append((self.command, self.path))
    parts = unquote(urlparse(self.path).path).strip("/").split("/")
    if parts[0] == "files":  # where redirects lead, as to another host's store
      return self._file(*self._found("/".join(parts[1:3]), parts[3], "/".join(parts[4:])))
    api = parts[:2] == ["api", "models"]
    repository, *rest = ["/".join(parts[2:4]), *parts[4:]] if api else ["/".join(parts[:2]), *parts[2:]]
    if repository in self.server.gated:
      return self._error("gated")
    if repository not in self.server.repositories:
      return self._error("repository")
    what, revision = rest[0], rest[1]
    sha = self.server.commit(repository, revision)
    if sha is None:
      return self._error("revision")
    files = self.server.files(repository, sha)
    if what == "revision":
      names = [{"rfilename": name} for name in files]
      return self._json({"id": repository, "modelId": repository, "sha": sha, "siblings": names, "tags": []})
    if what == "tree":
      entry = lambda name, data: {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}
      return self._json([entry(*item) for item in files.items()])
    name = "/".join(rest[2:])
    data = files[name]
    headers = {"X-Repo-Commit": sha, "X-Linked-ETag": f'"{_etag(data)}"', "X-Linked-Size": str(len(data))}
    headers |= {"ETag": f'"{_etag(data)}"', "Location": f"{self.server.store}/files/{repository}/{sha}/{name}"}
    return self._send(302, b"", headers)

  def _found(self, repository, sha, name):
    return name, self.server.files(repository, sha)[name]

  def _file(self, name: str, data: bytes):
    first = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0]
    part = data[int(first) :]
    headers = {"ETag": f'"{_etag(data)}"', "Accept-Ranges": "bytes"}
    if int(first):
      headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
    if self.command == "GET" and name.endswith(".safetensors") and self.server.cuts:
      self.server.cuts -= 1
      self._send(206 if int(first) else 200, part[: len(part) // 2], headers | {"Content-Length": str(len(part))})
      self.close_connection = True
      return
    self._send(206 if int(first) else 200, part, headers)

  def _error(self, kind: str):
    status, code = ERRORS[kind]
    self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": "Words of the server. " * 40})

  def _json(self, value):
    self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

  def _send(self, status: int, body: bytes, headers):
    self.send_response(status)
    for key, value in ({"Content-Length": str(len(body))} | headers).items():
      self.send_header(key, value)
    self.end_headers()
    if self.command == "GET":
      self.wfile.write(body)


def _etag(data: bytes) -> str:
  return hashlib.sha1(data).hexdigest()


@contextlib.contextmanager
def serving():
  """A Hub on this machine, until the block ends."""
  server = Hub()
  thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
  thread.start()
  try:
    yield server
  finally:
    server.shutdown()
    server.server_close()
    thread.join()
