"""The server: it listens where it is told, takes in no more than it must, and sends nothing anywhere."""

import contextlib
import errno
import os
import re
import socket
import webbrowser
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio would report its use, also without a page

import gradio as gr
import uvicorn
from anyio import CapacityLimiter
from gradio.themes import Base

from capsnet.errors import InputError
from capsnet.explorer.answers import Explorer
from capsnet.explorer.api import make_api
from capsnet.explorer.calls import add_calls
from capsnet.explorer.pages import build
from capsnet.explorer.pictures import MAX_BYTES

HERE = ("localhost", "127.0.0.1", "::1", "[::1]")
MAX_BODY = MAX_BYTES * 3 // 2
"""Of a request: a picture in base64, and what is around it."""
USED = re.compile(r"/|/(assets|static)/[\w./@-]+|/theme\.css|/favicon\.ico|/gradio_api/run/predict|/api/[a-z]+")
"""All that a page asks for. The rest of what Gradio offers reads, writes and fetches files, and is shut."""


def make_app(explorer: Explorer, only_here: bool = False) -> Any:
    """The pages and their API as an ASGI application; `only_here` refuses requests under names of other computers."""
    limiter = CapacityLimiter(1)  # one answer at a time, in order: each has the processor for itself
    blocks = build(explorer)
    blocks.has_launched = True  # only then Gradio refuses references to files that nobody uploaded
    api = make_api(explorer, limiter)
    add_calls(api, blocks, limiter)  # before mounting: what stands first answers
    app = gr.mount_gradio_app(
        api,
        blocks,
        path="/",
        theme=Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css_paths=Path(__file__).with_name("style.css"),
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        show_error=False,
    )
    return Bounded(app, only_here)


class Bounded:
    """Refuses requests that are too large, before they are read, and those that no page needs.

    A server that only this computer shall reach answers only to names of this computer: else any page in its user's
    browser could have a name of its own lead here, and read. Nor does it work for pages that came from elsewhere.
    """

    def __init__(self, app: Any, only_here: bool = False) -> None:
        self.app = app
        self.only_here = only_here

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close"})
        elif self.only_here and not _from_here(scope):
            await _refuse(send, 403)
        elif not USED.fullmatch(scope["path"]) or ".." in scope["path"]:
            await _refuse(send, 404)
        elif _announced(scope) > MAX_BODY:
            await _refuse(send, 413)
        else:
            asked = scope if scope["path"].startswith("/api/") else {**scope, "query_string": b""}
            await self.app(asked, _counted(receive), send)


def _from_here(scope: Any) -> bool:
    """Whether the server was called by a name of this computer, and by its own page if by one."""
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    host = headers.get(b"host", "")
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    return name in HERE and headers.get(b"origin", f"http://{host}") == f"http://{host}"


def _announced(scope: Any) -> int:
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    return int(lengths[0]) if lengths and lengths[0].isdigit() else 0


def _counted(receive: Any) -> Any:
    """A body that did not say how long it is breaks off where it becomes too long."""
    taken = 0

    async def counted() -> Any:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        return {"type": "http.disconnect"} if taken > MAX_BODY else message

    return counted


async def _refuse(send: Any, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


def serve(explorer: Explorer, host: str, port: int, open_browser: bool) -> None:
    """Answer until interrupted. Raises `InputError` if it cannot listen there."""
    if not 0 <= port < 2**16:
        raise InputError(f"a port is a number from 0 to {2**16 - 1}, not {port}")
    try:
        listening = socket.create_server((host, port))
    except OSError as error:
        told, _, _ = (error.strerror or str(error)).partition(" (while")
        hint = "; choose another with --port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else ""
        raise InputError(f"cannot listen on {host}, port {port}: {told}{hint}") from None
    app = make_app(explorer, only_here=host in HERE)
    with listening, contextlib.suppress(KeyboardInterrupt):
        url = f"http://{host}:{listening.getsockname()[1]}"
        print(f"{url}   (Ctrl-C ends it)", flush=True)
        if open_browser:
            webbrowser.open(url)
        uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)).run([listening])
