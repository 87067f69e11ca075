"""A server on this machine that speaks as much of W&B's API as a run needs, and keeps what it is told.

Real HTTP, for the real ``wandb-core`` process: GraphQL (viewer, resume status, run, files, artifacts), file streams and
uploads. It can also be broken on purpose.
"""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

KEY = "0" * 40
Manner = Literal["well", "status 500", "hangs", "garbage", "dies after the start"]


class Stub:
    """``runs`` by id: ``group``, ``name``, ``config``, ``history`` (rows), ``summary``, ``exit_code``, ``files``."""

    def __init__(self, manner: Manner = "well") -> None:
        self.manner = manner
        self.runs: dict[str, dict[str, Any]] = {}
        self.requests = 0
        self.released = threading.Event()

    def run(self, name: str) -> dict[str, Any]:
        empty = {"group": None, "name": None, "config": {}, "lines": {}, "summary": {}, "exit_code": None, "files": {}}
        return self.runs.setdefault(name, empty)

    def history(self, name: str) -> list[dict[str, Any]]:
        lines = self.run(name)["lines"]
        return [lines[number] for number in sorted(lines)]

    def environment(self, url: str) -> dict[str, str]:
        return {"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY}

    def answer(self, operation: str, query: str, given: dict[str, Any], url: str) -> dict[str, Any]:
        project = {"id": "p", "name": given.get("project"), "entity": {"id": "e", "name": "someone"}}
        if "Viewer" in operation or "viewer" in query:
            return {"viewer": {"id": "u", "entity": "someone", "username": "someone", "email": "a@b", "flags": "{}",
                               "teams": {"edges": []}}}  # fmt: skip
        if operation == "RunResumeStatus":
            return {"model": {**project, "bucket": self._bucket(given["name"]) if given["name"] in self.runs else None}}
        if operation == "UpsertBucket":
            run = self.run(given["name"])
            run["group"] = given.get("groupName") or run["group"]
            run["name"] = given.get("displayName") or run["name"]
            told = json.loads(given.get("config") or "{}")
            run["config"] |= {key: value["value"] for key, value in told.items() if key != "_wandb"}
            return {"upsertBucket": {"inserted": True, "bucket": {**self._bucket(given["name"]), "project": project}}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{url}/upload/{given['run']}/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        if operation == "CreateArtifact":
            sequence = {"id": "s", "latestArtifact": None}
            return {"createArtifact": {"artifact": {"id": "a", "state": "COMMITTED", "artifactSequence": sequence}}}
        if "artifactType" in query:
            return {"project": {"artifact": None}}
        raise KeyError(operation)

    def _bucket(self, name: str) -> dict[str, Any]:
        run, history = self.run(name), self.history(name)
        config = {key: {"value": value} for key, value in run["config"].items()}
        return {
            "id": "b",
            "name": name,
            "displayName": run["name"],
            "description": None,
            "config": json.dumps(config),
            "sweepName": None,
            "summaryMetrics": json.dumps(run["summary"]),
            "historyLineCount": len(history),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps([json.dumps(history[-1])] if history else []),
            "eventsTail": "[]",
            "tags": [],
            "notes": None,
            "wandbConfig": json.dumps({"t": 1}),
        }

    def stream(self, name: str, told: dict[str, Any]) -> None:
        """A part of a file stream: lines of history by number, the last summary, and the exit code at the end."""
        run = self.run(name)
        for file, part in told.get("files", {}).items():
            for number, line in enumerate(part["content"], start=part["offset"]):
                if file == "wandb-history.jsonl":
                    run["lines"][number] = json.loads(line)
                elif file == "wandb-summary.json":
                    run["summary"] = json.loads(line)
        if told.get("complete"):
            run["exit_code"] = told.get("exitcode")


def _handler(stub: Stub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            body = self._body()
            stub.requests += 1
            if stub.manner == "hangs" or (stub.manner == "dies after the start" and "file_stream" in self.path):
                stub.released.wait()
                self.close_connection = True
                return
            if stub.manner == "garbage":
                return self._send(200, b"<html>not what you wanted</html>")
            if stub.manner == "status 500":
                return self._send(500, b"{}")
            host = f"http://{self.headers['Host']}"
            if self.path.endswith("/graphql"):
                told = json.loads(body)
                try:
                    data = stub.answer(
                        told.get("operationName") or "", told["query"], told.get("variables") or {}, host
                    )
                except KeyError as error:
                    return self._send(200, json.dumps({"errors": [{"message": f"unknown {error}"}]}).encode())
                return self._send(200, json.dumps({"data": data}).encode())
            if self.path.endswith("/file_stream"):
                stub.stream(self.path.split("/")[-2], json.loads(body))
            elif self.path.startswith("/upload/"):
                _, _, run, name = self.path.split("/", 3)
                stub.run(run)["files"][name] = body
            return self._send(200, b"{}")

        do_GET = do_POST = do_PUT = handle_one

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                body = b"".join(parts)
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

        def _send(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *ignored: object) -> None: ...

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *ignored: object) -> None:
        """wandb-core leaves without closing its connections."""


@contextmanager
def serving(manner: Manner = "well") -> Iterator[tuple[Stub, str]]:
    """The stub and its address."""
    stub = Stub(manner)
    server = _Server(("127.0.0.1", 0), _handler(stub))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield stub, f"http://127.0.0.1:{server.server_port}"
    finally:
        stub.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
