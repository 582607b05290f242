"""A server that answers a run's requests like wandb's server, until the test stops it."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """Keeps the data of all requests.

    Attributes:
        runs: Variables of each request that makes or changes a run.
        rows: Rows of all histories.
        dead: If set, the server accepts requests and never answers.
        over: Set when the test has ended.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.runs: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.dead, self.over = threading.Event(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, path: str, said: dict[str, Any]) -> dict[str, Any]:
        if path.endswith("/file_stream"):
            content = said.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            self.rows += [json.loads(row) for row in content]
        if not path.endswith("/graphql"):
            return {}
        variables = said.get("variables") or {}
        if "UpsertBucket" in said["query"]:
            self.runs.append(variables)
        project = {"id": "1", "name": "p", "entity": {"id": "1", "name": "me"}}
        bucket = {"id": "1", "name": variables.get("name"), "displayName": "", "project": project}
        bucket |= {"config": "{}", "historyLineCount": 0}
        viewer = {"id": "1", "username": "me", "entity": "me", "email": "", "flags": "{}"}
        return {
            "data": {
                "viewer": {**viewer, "teams": {"edges": []}},
                "upsertBucket": {"bucket": bucket, "inserted": True},
                "createRunFiles": {"runID": "1", "uploadHeaders": [], "files": []},
                "serverInfo": {"features": []},
                "model": None,
            }
        }


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.dead.is_set():
            self.server.over.wait(60)
            return
        answer = json.dumps(self.server.answer(self.path, json.loads(body or b"{}"))).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Log nothing, because the log would go to stderr."""


@contextmanager
def wandb_server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join()
