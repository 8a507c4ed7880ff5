"""What programs can ask: the answers of the pages as JSON. docs/explorer.md describes it."""

import json
from collections.abc import Callable
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from torch import Tensor

from capsnet.errors import InputError
from capsnet.explorer import answers
from capsnet.explorer.answers import Explorer, Image, Subject
from capsnet.explorer.pictures import read_bytes, to_url


def make_api(explorer: Explorer, limiter: CapacityLimiter) -> FastAPI:
    """An application with the endpoints under /api. A picture is the body of a request, in the format of its file.

    As many answers are computed at a time as `limiter` lets through.
    """
    single, pair = explorer.single, explorer.pair
    app = FastAPI(openapi_url=None)  # its own documentation would load scripts from elsewhere

    async def answer(function: Callable[..., Any], *arguments: Any) -> Any:
        return await to_thread.run_sync(function, *arguments, limiter=limiter)

    @app.post("/api/look")
    async def look(request: Request) -> dict[str, Any]:
        return await answer(_look, single, await request.body())

    @app.post("/api/draw")
    async def draw(request: Request) -> dict[str, Any]:
        return await answer(_draw, single, await request.body())

    @app.post("/api/separate")
    async def separate(request: Request, first: str | None = None, second: str | None = None) -> dict[str, Any]:
        return await answer(_separate, pair, await request.body(), first, second)

    @app.post("/api/turn")
    async def turn(
        request: Request, rotation: float = 0.0, scale: float = 1.0, right: float = 0.0, down: float = 0.0
    ) -> dict[str, Any]:
        return await answer(_turn, explorer, await request.body(), rotation, scale, right, down)

    @app.exception_handler(InputError)
    async def _wrong(request: Request, error: InputError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 400)

    @app.exception_handler(RequestValidationError)
    async def _wrong_parameter(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"error": f"{first['loc'][-1]}: {first['msg']}"}, 400)

    return app


def _look(subject: Subject, content: bytes) -> dict[str, Any]:
    seen = answers.look(subject, _read(subject, content))
    return {
        "class": subject.names[seen.winner],
        "lengths": _by_name(subject, seen.agreement.lengths),
        "capsule": _rounded(seen.agreement.capsules[seen.winner]),
        "votes": _rounded(seen.agreement.by_position),
        "reconstruction": to_url(seen.reconstruction),
    }


def _draw(subject: Subject, content: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(content)
        name, capsule = asked["class"], asked["capsule"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise InputError('send JSON: {"class": "7", "capsule": [0.1, …]}') from None
    return {"reconstruction": to_url(answers.draw(subject, answers.class_number(subject, name), capsule))}


def _separate(subject: Subject, content: bytes, *forced: str | None) -> dict[str, Any]:
    first, second = (None if name is None else answers.class_number(subject, name) for name in forced)
    overlap = answers.tell_apart(subject, _read(subject, content), (first, second))
    return {
        "classes": [subject.names[k] for k in overlap.classes.tolist()],
        "lengths": _by_name(subject, overlap.lengths),
        "reconstructions": [to_url(image) for image in overlap.reconstructions],
    }


def _turn(explorer: Explorer, content: bytes, *amounts: object) -> dict[str, Any]:
    subject = explorer.single
    turned = answers.turn(explorer, _read(subject, content), *amounts)
    return {
        "class": subject.names[turned.number],
        "lengths": _by_name(subject, turned.lengths),
        "angle": round(turned.angle, 2),
        "cnn": None if turned.cnn is None else _by_name(subject, turned.cnn),
        "image": to_url(turned.image),
        "reconstruction": to_url(turned.reconstruction),
    }


def _read(subject: Subject, content: bytes) -> Image:
    return read_bytes(content, subject.shape, subject.run.framing)


def _by_name(subject: Subject, values: Tensor) -> dict[str, float]:
    return dict(zip(subject.names, _rounded(values), strict=True))


def _rounded(values: Tensor) -> Any:
    return values.double().mul(1e4).round().div(1e4).tolist()
