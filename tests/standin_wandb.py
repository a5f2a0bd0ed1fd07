"""A stand-in for the W&B backend on loopback: as much as the real client, `wandb sync` and `wandb.Api` ask for.

    with StandIn() as server:
        ...                       # a program run with server.environment()
        server.runs["id"].history

Rows of history are kept by their `_step`, of which a run has one each; `repeats` counts those that came more than
once. `stop()` is a server that dies, `start()` one that comes back with what it had.
"""

import base64
import contextlib
import gzip
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "local-" + "0123456789abcdef" * 3
TIME = "2026-01-01T00:00:00Z"


@dataclass
class Run:
    """What arrived of one run."""

    id: str
    project: str
    attributes: dict = field(default_factory=dict)
    config: dict = field(default_factory=dict)
    rows: dict[int, dict] = field(default_factory=dict)
    summary: dict = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None
    complete: bool = False
    repeats: int = 0

    @property
    def history(self) -> list[dict]:
        return [self.rows[step] for step in sorted(self.rows)]

    @property
    def state(self) -> str:
        return ("finished" if self.exit_code == 0 else "failed") if self.complete else "running"


class StandIn:
    """The server.

    Args:
        key: the only API key it takes.
    """

    def __init__(self, key: str = KEY):
        self.key, self.entity = key, "lab"
        self.runs: dict[str, Run] = {}
        self.views: dict[str, dict] = {}
        self.operations: list[str] = []
        self.unknown: list[str] = []
        self.hangs = threading.Event()
        self.forbids = False
        self.num_connections = 0
        self.released = threading.Event()
        self.lock = threading.RLock()
        self.port, self._server = 0, None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    """What it does on request: `hangs` takes connections and never answers, `forbids` lets nobody make a run."""

    def environment(self, key: str | None = None) -> dict[str, str]:
        """What a client's environment needs to come here."""
        return {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": key or self.key,
            "WANDB_MODE": "online",
            "WANDB_ERROR_REPORTING": "false",
        }

    def start(self) -> "StandIn":
        self.stop()
        self.hangs.clear()
        self.released.clear()
        self._server = _Server(self)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Dies: the port is closed, and so is every connection."""
        server, self._server = self._server, None
        if server is not None:
            self.released.set()
            server.shutdown()  # first: a thread that still waits on the port would keep it taken
            server.server_close()
            server.drop()

    __enter__ = start

    def __exit__(self, *_) -> None:
        self.stop()

    def allows(self, header: str | None) -> bool:
        try:
            return base64.b64decode((header or "").removeprefix("Basic ")).decode() == f"api:{self.key}"
        except ValueError:
            return False

    # GraphQL --------------------------------------------------------------------------------------------------------

    def graphql(self, request: dict) -> dict:
        """Answers one operation; an unknown one by an error, and remembers it."""
        text, variables = request["query"], request.get("variables") or {}
        found = re.search(r"(?:query|mutation)\s+(\w+)", text)
        name = request.get("operationName") or (found[1] if found else "?")
        with self.lock:
            self.operations.append(name)
            answer = getattr(self, f"on_{name}", None)
            if self.forbids and name == "UpsertBucket":
                return {"data": None, "errors": [{"message": "permission denied", "path": ["upsertBucket"]}]}
            if answer is None:
                self.unknown.append(text)
                return {"data": None, "errors": [{"message": f"the stand-in has no {name}"}]}
            return {"data": answer(variables)}

    def on_Viewer(self, _: dict) -> dict:
        who = {"id": "u", "entity": self.entity, "username": self.entity, "email": "a@b.c", "flags": "{}"}
        return {"viewer": who | {"teams": {"edges": [{"node": {"name": self.entity}}]}}}

    def on_GetDefaultEntity(self, _: dict) -> dict:
        return {"viewer": {"entity": self.entity, "id": "u", "username": self.entity}}

    def on_OrganizationCoreWeaveOrganizationID(self, _: dict) -> dict:
        return {"entity": {"organization": {"coreWeaveOrganizationId": ""}}}

    def on_ServerFeaturesQuery(self, _: dict) -> dict:
        return {"serverInfo": {"features": []}}

    def on_RunResumeStatus(self, variables: dict) -> dict:
        run = self.runs.get(variables["name"])
        project = {"name": variables["project"], "entity": {"name": self.entity}}
        return {"model": project | {"bucket": run and self._bucket(run)}}

    def _bucket(self, run: Run) -> dict:
        return {
            "id": run.id,
            "name": run.id,
            "displayName": run.attributes.get("displayName", run.id),
            "description": "",
            "summaryMetrics": json.dumps(run.summary),
            "logLineCount": 0,
            "historyLineCount": len(run.rows),
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
            "eventsTail": "[]",
            "config": json.dumps({key: {"value": value} for key, value in run.config.items()}),
            "tags": run.attributes.get("tags") or [],
            "notes": None,
            "wandbConfig": json.dumps({"t": 1}),
            "sweepName": None,
        }

    def on_UpsertBucket(self, variables: dict) -> dict:
        new = variables["name"] not in self.runs
        run = self.runs.setdefault(
            variables["name"], Run(variables["name"], variables.get("project") or "uncategorized")
        )
        unsaid = ("config", "summaryMetrics")
        run.attributes |= {k: v for k, v in variables.items() if v is not None and k not in unsaid}
        if variables.get("config"):
            config = json.loads(variables["config"])
            run.config |= {key: value["value"] for key, value in config.items() if isinstance(value, dict)}
        project = {"id": "p", "name": run.project, "entity": {"id": "e", "name": self.entity}}
        return {"upsertBucket": {"bucket": self._bucket(run) | {"project": project}, "inserted": new}}

    def on_CreateRunFiles(self, variables: dict) -> dict:
        files = [
            {"name": name, "uploadUrl": f"{self.url}/upload/{variables['run']}/{name}"} for name in variables["files"]
        ]
        return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}

    def on_UpsertView2(self, variables: dict) -> dict:
        self.views[variables["name"]] = variables
        return {"upsertView": {"view": {"id": "view1", "name": variables["name"]}, "inserted": True}}

    # what wandb.Api reads -------------------------------------------------------------------------------------------

    def _node(self, run: Run) -> dict:
        return self._bucket(run) | {
            "projectId": "1",
            "state": run.state,
            "group": run.attributes.get("groupName"),
            "jobType": run.attributes.get("jobType"),
            "commit": None,
            "readOnly": False,
            "createdAt": TIME,
            "heartbeatAt": TIME,
            "notes": "",
            "user": {"name": "lab", "username": "lab"},
            "systemMetrics": "{}",
            "historyKeys": self._keys(run),
        }

    def _keys(self, run: Run) -> dict:
        rows = run.history
        keys = {
            key: {"typeCounts": [{"type": "number", "count": len(rows)}], "monotonic": False, "previousValue": 0}
            for row in rows
            for key in row
        }
        return {"keys": keys, "lastStep": rows[-1]["_step"] if rows else -1, "sets": []}

    def on_Runs(self, variables: dict) -> dict:
        wanted = json.loads(variables.get("filters") or "{}")
        nodes = [self._node(run) for run in self.runs.values() if run.project == variables["project"]]
        nodes = [
            n for n in nodes if all(n.get(k) == v for k, v in wanted.items() if k in ("group", "jobType", "state"))
        ]
        edges = [{"node": node, "cursor": str(index)} for index, node in enumerate(nodes)]
        runs = {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}
        return {"project": {"internalId": "1", "runCount": len(edges), "readOnly": False, "runs": runs}}

    def on_Run(self, variables: dict) -> dict:
        run = self.runs.get(variables["name"])
        return {"project": {"run": run and self._node(run)}}

    def on_RunFullHistory(self, variables: dict) -> dict:
        rows = self.runs[variables["name"]].history
        return {"project": {"run": {"history": [json.dumps(row) for row in rows]}}}

    def on_RunHistoryKeys(self, variables: dict) -> dict:
        return {"project": {"run": {"historyKeys": self._keys(self.runs[variables["name"]])}}}

    def on_RunParquetHistory(self, variables: dict) -> dict:
        rows = self.runs[variables["runName"]].history
        return {"project": {"run": {"parquetHistory": {"parquetUrls": [], "liveData": rows}}}}

    def on_HistoryPage(self, variables: dict) -> dict:
        rows = self.runs[variables["run"]].history
        part = [row for row in rows if variables["minStep"] <= row["_step"] < variables["maxStep"]]
        return {"project": {"run": {"history": [json.dumps(row) for row in part]}}}

    # the stream of a run --------------------------------------------------------------------------------------------

    def stream(self, run_id: str, body: dict) -> dict:
        """Takes what a client streams."""
        with self.lock:
            run = self.runs[run_id]
            for name, chunk in (body.get("files") or {}).items():
                lines = [json.loads(line) for line in chunk["content"]] if name.endswith((".jsonl", ".json")) else []
                if name == "wandb-history.jsonl":
                    run.repeats += sum(row["_step"] in run.rows for row in lines)
                    run.rows |= {row["_step"]: row for row in lines}
                elif name == "wandb-summary.json":
                    run.summary = lines[-1]
            if body.get("complete"):
                run.complete, run.exit_code = True, body.get("exitcode")
        return {}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, owner: StandIn):
        self.owner, self.sockets = owner, set()
        super().__init__(("127.0.0.1", owner.port), _Handler)

    def process_request(self, request, client_address):
        self.sockets.add(request)
        self.owner.num_connections += 1
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        self.sockets.discard(request)
        super().shutdown_request(request)

    def drop(self) -> None:
        for each in list(self.sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def handle_error(self, *_):
        """The client resets idle connections."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        return gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body

    def _send(self, answer: dict | bytes, code: int = 200) -> None:
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _answers(self) -> bool:
        owner = self.server.owner
        if owner.hangs.is_set():
            owner.released.wait()
        if owner._server is not self.server:
            self.close_connection = True
            return False
        return True

    def do_POST(self):
        owner, body = self.server.owner, self._body()
        if not self._answers():
            return
        if not owner.allows(self.headers.get("authorization")):
            self._send({"errors": [{"message": "user is not logged in"}]}, 401)
        elif self.path.startswith("/graphql"):
            self._send(owner.graphql(json.loads(body)))
        elif found := re.match(r"/files/(?:[^/]*)/?[^/]+/([^/]+)/file_stream", self.path):
            self._send(owner.stream(found[1], json.loads(body)))
        else:
            owner.unknown.append(self.path)
            self._send({})

    def do_PUT(self):
        owner, body = self.server.owner, self._body()
        if self._answers() and (found := re.match(r"/upload/([^/]+)/(.+)", self.path)):
            owner.runs[found[1]].uploads[found[2]] = body
            self._send({})

    def do_GET(self):
        owner = self.server.owner
        if self._answers() and (found := re.match(r"/upload/([^/]+)/(.+)", self.path)):
            self._send(owner.runs[found[1]].uploads.get(found[2], b""))
