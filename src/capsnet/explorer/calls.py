"""The pages' calls of their functions, answered here and not by Gradio.

Gradio looks for files in what it is sent, to copy, fetch and serve them, and keeps the last values of each visitor.
Here a call is JSON in, a function, JSON out.
"""

import inspect
import json
from typing import Any

import gradio as gr
from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Request

from capsnet.errors import InputError

PATH = "/gradio_api/run/predict"
"""Where Gradio's page calls the functions that have no queue."""


def add_calls(app: FastAPI, blocks: gr.Blocks, limiter: CapacityLimiter) -> None:
    """Let `app` answer what the pages in `blocks` ask, as many at a time as `limiter` lets through."""

    @app.post(PATH)
    async def call(request: Request) -> dict[str, Any]:
        function, arguments = _read(blocks, await request.body())
        answer = await to_thread.run_sync(lambda: function.fn(*arguments), limiter=limiter)
        return {"data": [answer] if len(function.outputs) == 1 else list(answer), "is_generating": False}


def _read(blocks: gr.Blocks, body: bytes) -> tuple[Any, list[Any]]:
    """The function that a call is of, and its arguments. Raises `InputError` if no page makes this call."""
    try:
        asked = json.loads(body, parse_constant=_no_number)
        function = blocks.fns[asked["fn_index"]]
        arguments = asked["data"]
        if not isinstance(arguments, list) or len(arguments) != len(function.inputs):
            raise ValueError
    except (ValueError, TypeError, KeyError, RecursionError):
        raise InputError("no page makes this call") from None
    event = [gr.EventData(None, asked.get("event_data"))] if _takes_event(function.fn) else []
    return function, [*event, *arguments]


def _no_number(name: str) -> float:
    raise ValueError(name)  # NaN and Infinity, which no page sends and no answer may hold


def _takes_event(function: Any) -> bool:
    first = next(iter(inspect.signature(function).parameters.values()), None)
    return first is not None and first.annotation is gr.EventData
