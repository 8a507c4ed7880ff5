"""The explorer gives no file away, writes none and fetches none, whatever is sent to whatever Gradio offers."""

import http.client
import inspect
import json
import re
import socket
import tempfile

import gradio.routes
import pytest
from gradio.state_holder import SessionState
from serving import as_url, digit, png, serving
from starlette.routing import Mount

from capsnet.explorer import answers
from capsnet.explorer.server import make_app

SECRET = "a secret of the user"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the secret, a folder for temporary files, and in it what another program with Gradio has left there."""
    folder = tmp_path_factory.mktemp("explorer")
    (folder / "secret.txt").write_text(SECRET)
    (folder / "temp" / "gradio" / "deep_links" / "left").mkdir(parents=True)
    (folder / "temp" / "gradio" / "deep_links" / "left" / "state.json").write_text("[]")
    (folder / "temp" / "gradio" / "left.txt").write_text(SECRET)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder / "temp"))
        patch.setenv("TMPDIR", str(folder / "temp"))
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "temp" / "gradio"))
        yield folder


@pytest.fixture(scope="module")
def explorer(folder):
    return answers.open_explorer(None)


@pytest.fixture(scope="module")
def gradio_app(explorer):
    return next(route.app for route in make_app(explorer).app.routes if isinstance(route, Mount))


@pytest.fixture(scope="module")
def port(explorer):
    with serving(explorer) as url:
        yield int(url.rsplit(":", 1)[1])


@pytest.fixture(autouse=True)
def disk(folder):
    """Nothing may be written anywhere near."""
    before = sorted(folder.rglob("*"))
    yield
    assert sorted(folder.rglob("*")) == before


@pytest.fixture
def looked_up(monkeypatch):
    names = []
    lookup = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **named: names.append(host) or lookup(host, *rest, **named)
    )
    return names


def send(port, method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    finally:
        connection.close()


def references(folder, valid):
    """What Gradio takes for a file: of the user's, of another program's or elsewhere; also within other things."""
    meta = {"meta": {"_type": "gradio.FileData"}}
    secret = {"path": str(folder / "secret.txt"), **meta}
    yield secret
    yield {**secret, "url": f"file://{folder}/secret.txt", "orig_name": "x.png", "is_stream": True}
    yield {"path": str(folder / "temp" / "gradio" / "left.txt"), **meta}
    yield {"path": "http://example.invalid/x", **meta}
    yield {"path": "", "url": "http://example.invalid/x", **meta}
    valid = valid if isinstance(valid, dict) else {}
    yield {**valid, "more": [[secret]]}
    yield {**valid, "__type__": "update", "value": secret}


def inputs_of(gradio_app):
    """For each function of the pages, inputs that it takes, without a picture, since figures take seconds."""
    capsule = {"number": 7, "capsule": [0.1] * 16, "offsets": [0.0] * 16}
    for number, function in gradio_app.get_blocks().fns.items():
        values = [getattr(block, "value", None) for block in function.inputs]
        yield (
            number,
            [capsule if value is None else "" if str(value).startswith("data:") else value for value in values],
        )


def test_no_input_of_no_function_takes_a_file(port, gradio_app, folder, looked_up):
    def call(**body):
        _, said = send(port, "POST", "/gradio_api/run/predict", json.dumps({"session_hash": "x", **body}))
        assert SECRET not in said
        assert "file=" not in said

    functions = dict(inputs_of(gradio_app))
    for number, valid in functions.items():
        call(fn_index=number, data=valid, event_data=next(references(folder, None)))
        for place, value in enumerate(valid):
            for reference in references(folder, value):
                call(
                    fn_index=number, data=[*valid[:place], reference, *valid[place + 1 :]], event_data={"number": 10**6}
                )
    assert len(functions) > 20
    assert not [name for name in looked_up if "example" in str(name)]


def test_nothing_else_that_gradio_offers_is_open(port, folder):
    """Each of its routes, with each method: but for the page and what it is made of, all are shut."""
    found = re.findall(r'@(app|router)\.\w+\(\s*f?"(/[^"]*)"', inspect.getsource(gradio.routes))
    assert len(found) > 70
    used = re.compile(r"/|/theme.css|/favicon.ico|/gradio_api/run/predict|/(assets|static)/.*")
    for owner, pattern in sorted(set(found)):
        for end in (str(folder / "secret.txt"), "predict"):
            path = ("/gradio_api" if owner == "router" else "") + re.sub(r"\{[^}]*\}", end, pattern)
            for method in ("GET", "POST"):
                status, said = send(port, method, path, json.dumps({"data": [], "session_hash": "x", "fn_index": 0}))
                assert SECRET not in said
                if not used.fullmatch(path):
                    assert status == 404, (method, path)


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file={secret}",
        "/gradio_api/file={left}",
        "/gradio_api//file={left}",
        "/gradio_api/%66ile={left}",
        "/file={left}",
        "/gradio_api/file/{left}",
        "/gradio_api/proxy=http://example.invalid/x",
        "/gradio_api/deep_link?session_hash=x",
        "/gradio_api/upload",
        "/gradio_api/queue/join",
        "/gradio_api/queue/data?session_hash=x",
        "/gradio_api/call/look",
        "/gradio_api/call/v2/look",
        "/gradio_api/api/predict",
        "/gradio_api/run/predict/",
        "/gradio_api/run/look",
        "/gradio_api/component_server",
        "/gradio_api/heartbeat/x",
        "/gradio_api/dev/reload",
        "/config",
        "/openapi.json",
        "/docs",
        "/static/../../../../../../..{secret}",
        "/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e{secret}",
        "/assets/{secret}",
        "/static/{secret}",
    ],
)
def test_known_ways_to_files_are_shut(port, folder, looked_up, path):
    path = path.format(secret=folder / "secret.txt", left=folder / "temp" / "gradio" / "left.txt")
    for method in ("GET", "HEAD", "POST", "PUT"):
        status, said = send(port, method, path, json.dumps({"data": [], "session_hash": "x", "fn_index": 0}))
        assert status in (403, 404, 405)
        assert SECRET not in said
    assert not [name for name in looked_up if "example" in str(name)]


def test_what_was_drawn_is_forgotten_with_the_answer(port, gradio_app, monkeypatch):
    kept = []
    monkeypatch.setattr(SessionState, "__init__", lambda self, blocks: kept.append(self))
    number = next(number for number, values in inputs_of(gradio_app) if values == [""])
    body = {"fn_index": number, "data": [as_url(png(digit(0)))], "session_hash": "x"}
    status, said = send(port, "POST", "/gradio_api/run/predict", json.dumps(body))
    assert (status, "It sees 7" in said) == (200, True)
    assert not kept


def test_a_link_to_what_somebody_else_drew_is_not_followed(port):
    plain = send(port, "GET", "/")[1]
    assert send(port, "GET", "/?deep_link=left")[1] == plain
    assert '"deep_link_state":"none"' in plain


def test_a_web_socket_is_refused(port):
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "x" * 24,
    }
    assert send(port, "GET", "/gradio_api/queue/join", **headers)[0] in (403, 404)
