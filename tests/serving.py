"""The explorer, served from a thread of the test run."""

import contextlib
import socket
import threading
import time

import uvicorn

from capsnet.explorer.server import make_app


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
