"""A server that answers requests of the library huggingface_hub as the Hub does."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0" * 40
TOKEN = "hf_secret"


@contextmanager
def hub(name: str, folder: Path) -> Iterator[str]:
    """The address of a Hub with one model, whose files are in `folder`. Uploads need TOKEN."""
    large: dict[str, bytes] = {}
    """The uploaded content of large files, by hash."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self, body: bytes, **headers: str) -> None:
            self.send_response(200)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def answer_json(self, content: Any) -> None:
            self.answer(json.dumps(content).encode(), Content_Type="application/json")

        def refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path, _, file = self.path.partition("?")[0].rpartition("/")
            if self.path.startswith(f"/api/models/{name}/tree"):
                tree = [
                    {
                        "type": "file",
                        "path": each.name,
                        "size": each.stat().st_size,
                        "oid": each.name,
                    }
                    for each in folder.iterdir()
                ]
                self.answer_json(tree)
            elif self.path.startswith(f"/api/models/{name}"):
                files = [{"rfilename": each.name} for each in folder.iterdir()]
                self.answer_json({"id": name, "sha": COMMIT, "siblings": files})
            elif path.startswith(f"/{name}/resolve/") and (folder / file).exists():
                body = (folder / file).read_bytes()
                self.answer(body, ETag=f'"{file}"', X_Repo_Commit=COMMIT)
            else:
                self.refuse(404, "RepoNotFound")

        def read(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers["Content-Length"]))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def do_PUT(self) -> None:
            large[self.path.rpartition("/")[2]] = self.read()
            self.answer(b"")

        def do_POST(self) -> None:
            body, place = self.read(), self.path.partition("?")[0]
            if place == "/api/validate-yaml":
                self.answer_json({"errors": [], "warnings": []})
            elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.refuse(401, "Unauthorized")
            elif place == "/api/repos/create":
                self.answer_json({"url": f"http://{self.headers['Host']}/{name}", "id": name})
            elif place == f"/api/models/{name}/preupload/main":
                files = [
                    {
                        "path": each["path"],
                        "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular",
                        "shouldIgnore": False,
                    }
                    for each in json.loads(body)["files"]
                ]
                self.answer_json({"files": files})
            elif place == f"/{name}.git/info/lfs/objects/batch":
                host = self.headers["Host"]
                objects = [
                    {**each, "actions": {"upload": {"href": f"http://{host}/put/{each['oid']}"}}}
                    for each in json.loads(body)["objects"]
                ]
                self.answer_json({"transfer": "basic", "objects": objects})
            elif place == f"/api/models/{name}/commit/main":
                for line in map(json.loads, body.splitlines()):
                    value = line["value"]
                    if line["key"] == "file":
                        (folder / value["path"]).write_bytes(base64.b64decode(value["content"]))
                    elif line["key"] == "lfsFile":
                        (folder / value["path"]).write_bytes(large[value["oid"]])
                address = f"http://{self.headers['Host']}/{name}/commit/{COMMIT}"
                self.answer_json({"commitUrl": address, "commitOid": COMMIT})
            else:
                self.refuse(404, "RepoNotFound")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
