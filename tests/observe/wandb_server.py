"""A server that answers as wandb's does, as far as a run needs it, until it is told not to."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """Keeps what it is sent.

    Attributes:
        runs: Variables of each request to make or change a run.
        rows: Of all histories.
        dead: Set: it takes requests, and never answers.
        over: Set when the test is.
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
        """Nothing: it would be on stderr."""


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
