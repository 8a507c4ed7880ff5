"""The explorer, served from a thread of the test run, and what the tests ask of it."""

import base64
import contextlib
import io
import json
import socket
import threading
import time
import urllib.request

import uvicorn
from PIL import Image

import capsnet
from capsnet.explorer.server import make_app

PALE = Image.new("L", (300, 300), 99)


@contextlib.contextmanager
def serving(explorer):
    """The address at which it answers."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(make_app(explorer, only_here=True), log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()


def digit(number):
    return capsnet.open_dataset("mnist", "test").images[number]


def png(picture):
    buffer = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture[0].numpy())).save(buffer, "PNG")
    return buffer.getvalue()


def as_url(content):
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def ask(url, path, body, timeout=30):
    return _post(f"{url}/api/{path}", body, timeout)


def call(url, number, *inputs):
    """What the page gets from the function of this number."""
    body = json.dumps({"fn_index": number, "data": inputs, "session_hash": "x"}).encode()
    return _post(f"{url}/gradio_api/run/predict", body, 30)["data"]


def _post(address, body, timeout):
    with urllib.request.urlopen(address, body, timeout=timeout) as answer:
        return json.load(answer)
