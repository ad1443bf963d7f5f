"""The server of the lab: it sends the page, and answers the requests of the page."""

import asyncio
import json
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from importlib.resources import files
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from ..errors import Stopped, UserError, make_line
from ..reports.inlining import inline_page
from .answers import QUESTIONS, generate, train
from .answers.question import Answer, Question
from .lessons import find_file, list_lessons, render_lesson
from .library import Library, read_metrics, to_json
from .security import Guard
from .training import MAX_TEXT_BYTES, Trainings, is_locked, save_text
from .worker import Check, Outdated, Worker

POLL_SECONDS = 2
"""Seconds between two reads of the metrics and of the list of runs, in events()."""
TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
PAGES = [files(package) / "page" for package in ("nanogpt.lab", "nanogpt.reports")]
"""Folders with the files of the page. `nanogpt inspect` uses the second folder, too."""


class Lab:
    """The routes, and what they use: the runs, the training processes, the worker thread."""

    def __init__(self, library: Library) -> None:
        self.library, self.trainings, self.worker = library, Trainings(), Worker()
        self.token = secrets.token_urlsafe(16)

    def app(self, hosts: list[str] | None, password: str | None = None) -> ASGIApp:
        """Return the application; Guard explains the arguments."""
        routes = [Route(f"/{name}", self._answer(name, ask)) for name, ask in QUESTIONS.items()]
        routes += [
            Route("/", self.page),
            Route("/page/{name}", self.page),
            Route("/frame", self.frame),
            Route("/lessons", self.list_lessons),
            Route("/lessons/{name:path}", self.lesson),
            Route("/runs", self.runs),
            Route("/metrics", self.metrics),
            Route("/events", self.events),
            Route("/sample", self.sample),
            Route("/setup", self.setup),
            Route("/explain", self.explain),
            Route("/train", self.train, methods=["POST"]),
            Route("/pause", self.pause, methods=["POST"]),
            Route("/resume", self.resume, methods=["POST"]),
            Route("/text", self.text, methods=["POST"]),
        ]
        paths = [Route(f"/{self.token}{r.path}", r.endpoint, methods=r.methods) for r in routes]
        handlers: dict[Any, Any] = {
            UserError: _explain,
            Stopped: _explain,
            OSError: _explain,
            **dict.fromkeys((KeyError, TypeError, ValueError), _refuse),
            Outdated: lambda *_: _json(b'{"outdated": true}'),
        }
        return Guard(
            Starlette(routes=paths, exception_handlers=handlers), self.token, hosts, password
        )

    def _answer(self, name: str, ask: Answer) -> Callable[[Request], Any]:
        """Return a request handler that lets the worker compute an answer."""

        async def route(request: Request) -> Response:
            query = dict(request.query_params)
            view, turn = query.pop("view", name), int(query.pop("turn", 0))
            question = Question(self.library, query)
            key = name, *sorted(query.items()), question.version()

            def compute(check: Check) -> bytes:
                return to_json(ask(question, check))

            return _json(await self.worker.ask(view, turn, key, compute))

        return route

    async def page(self, request: Request) -> Response:
        """Send a file of the page."""
        name = request.path_params.get("name", "index.html")
        for folder in PAGES:
            file = folder / name
            kind = TYPES.get(name.rpartition(".")[2])
            if kind and "/" not in name and "\\" not in name and file.is_file():
                return Response(file.read_bytes(), media_type=kind)
        return Response("there is no such file", 404)

    async def frame(self, request: Request) -> Response:
        """Send the page as one file that loads no other file; save.js adds the data of a view."""
        template = (PAGES[0] / "index.html").read_text("utf-8")
        return Response(inline_page(template, PAGES, "null"), media_type="text/html")

    async def list_lessons(self, request: Request) -> Response:
        """Send the numbers, titles and files of the lessons."""
        return _json(to_json(list_lessons()))

    async def lesson(self, request: Request) -> Response:
        """Send a lesson or one of its pictures."""
        file = find_file(request.path_params["name"])
        if file is None:
            return Response("there is no such lesson", 404)
        text = file.read_text("utf-8")
        if file.suffix == ".svg":
            return Response(text, media_type="image/svg+xml")
        return Response(render_lesson(text), media_type="text/html")

    async def runs(self, request: Request) -> Response:
        """Send the list of all runs; a damaged run has a message instead of its data."""
        return _json(to_json(await run_in_threadpool(self._list_runs)))

    def _list_runs(self) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = []
        for name, directory in self.library.directories().items():
            try:
                summary = self.library.describe(name)
                is_training = self.trainings.is_running(name) or (
                    summary.is_training and is_locked(directory)
                )
                listed.append({**summary.__dict__, "is_training": is_training})
            except (UserError, OSError, ValueError) as error:
                listed.append({"name": name, "error": make_line(error)})
        known = {run["name"] for run in listed}
        for name in self.trainings.started():
            failure = self.trainings.failure(name)
            is_starting = name not in known and self.trainings.is_running(name)
            if failure or is_starting:
                listed.insert(0, {"name": name, "error": failure, "is_starting": is_starting})
        return listed

    async def metrics(self, request: Request) -> Response:
        """Send all lines of metrics.jsonl of a run."""
        run = self.library.find(request.query_params.get("run", ""))
        return _json(to_json(read_metrics(run)))

    async def events(self, request: Request) -> Response:
        """Send the metrics of the runs in the query, and the list of runs, whenever they change."""
        names = request.query_params.getlist("run")

        async def watch() -> AsyncIterator[str]:
            sent, listed = dict.fromkeys(names, (0, 0)), ""
            while True:
                for name in names:
                    try:
                        run = self.library.find(name)
                        file = (run / "metrics.jsonl").stat().st_ino
                        start = sent[name][1] if sent[name][0] == file else 0
                        records = read_metrics(run, start)
                    except (UserError, OSError, ValueError):
                        continue  # the list of runs shows the error
                    if records:
                        sent[name] = file, start + len(records)
                        yield _event("records", {"run": name, "start": start, "records": records})
                runs = json.dumps(await run_in_threadpool(self._list_runs))
                if runs != listed:
                    listed = runs
                    yield f"event: runs\ndata: {runs}\n\n"
                await asyncio.sleep(POLL_SECONDS)

        return StreamingResponse(watch(), media_type="text/event-stream")

    async def sample(self, request: Request) -> Response:
        """Send a completion piece by piece."""
        question = Question(self.library, dict(request.query_params))

        async def send() -> AsyncIterator[str]:
            try:
                pieces = await self.worker.run(generate.start_sample, question)
                while text := await self.worker.run(generate.join_pieces, pieces):
                    yield _event("piece", text)
            except (UserError, Stopped, OSError) as error:
                yield _event("problem", make_line(error))
            yield _event("end", None)

        return StreamingResponse(send(), media_type="text/event-stream")

    async def setup(self, request: Request) -> Response:
        """Send the presets, the corpora and the largest sizes for a new run."""
        return _json(to_json(train.list_choices()))

    async def explain(self, request: Request) -> Response:
        """Send the number of parameters of a planned run, and its estimated time and memory."""
        answer = await run_in_threadpool(train.explain, dict(request.query_params))
        return _json(to_json(answer))

    async def train(self, request: Request) -> Response:
        """Start a run."""
        plan = await _read_object(request)
        sizes = {**plan.get("sizes", {}), "steps": plan["steps"]}
        name = await run_in_threadpool(
            self.trainings.start, str(plan["preset"]), str(plan["data"]), sizes
        )
        return _json(to_json({"run": name}))

    async def pause(self, request: Request) -> Response:
        """Pause a run: its process saves a checkpoint and ends."""
        name = str((await _read_object(request))["run"])
        await run_in_threadpool(self.trainings.pause, name, self.library.find(name))
        return _json(b"{}")

    async def resume(self, request: Request) -> Response:
        """Continue a paused run."""
        name = str((await _read_object(request))["run"])
        await run_in_threadpool(self.trainings.resume, name, self.library.find(name))
        return _json(b"{}")

    async def text(self, request: Request) -> Response:
        """Save a pasted text."""
        return _json(to_json({"data": save_text(await _read_body(request, MAX_TEXT_BYTES))}))


def serve(app: ASGIApp, listener: socket.socket) -> None:
    """Answer requests until Ctrl-C or SIGTERM."""
    config = uvicorn.Config(app, log_level="error", access_log=False, timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listener])


def _json(raw: bytes) -> Response:
    return Response(raw, media_type="application/json")


def _event(name: str, data: object) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


async def _explain(_: Request, error: Exception) -> Response:
    """Answer with the message of an error.

    The status is 200, because browsers show a response with status 4xx or 5xx as an error in the
    console.
    """
    return _json(json.dumps({"error": make_line(error)}).encode())


async def _refuse(_: Request, error: Exception) -> Response:
    """Answer an invalid request; it usually comes from a page of another version of nanogpt."""
    return await _explain(_, UserError("this request is invalid: load the page again"))


async def _read_body(request: Request, limit: int) -> bytes:
    raw = b""
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > limit:
            raise UserError(f"the request is too long: use at most {limit:,} bytes")
    return raw


async def _read_object(request: Request) -> dict[str, Any]:
    """Return the JSON object in a request. Raises ValueError if the request has no JSON object."""
    value = json.loads(await _read_body(request, 10_000))
    if not isinstance(value, dict):
        raise ValueError
    return value
