"""The explorer's server: what it answers to whom, and that it stays up."""

import concurrent.futures
import http.client
import importlib.util
import json
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from serving import PALE, as_url, ask, call, digit, png, serving

from capsnet import cli
from capsnet.explorer import answers, pictures
from capsnet.explorer.pages import build


@pytest.fixture(scope="module")
def explorer():
    return answers.open_explorer(None)


@pytest.fixture(scope="module")
def url(explorer):
    with serving(explorer) as address:
        yield address


def test_a_port_that_is_taken_is_told_in_one_line(capsys, url):
    port = url.rsplit(":", 1)[1]
    assert cli.main(["explore", "--no-browser", "--port", port]) == 2
    err = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1, port {port}: Address already in use; choose another with --port" in err
    assert err.count("\n") == 1
    for options, told in ((["--port", "99999"], "0 to 65535, not 99999"), (["--host", "300.1.1.1"], "cannot listen")):
        assert cli.main(["explore", "--no-browser", *options]) == 2
        assert told in capsys.readouterr().err


def test_the_api_answers_what_the_pages_show(url, explorer):
    said = ask(url, "look", png(digit(0)))
    seen = answers.look(explorer.single, digit(0))
    assert said["class"] == "7"
    assert list(said["lengths"].values()) == pytest.approx(seen.agreement.lengths.tolist(), abs=1e-4)
    torch.testing.assert_close(torch.tensor(said["votes"]), seen.agreement.by_position, atol=1e-4, rtol=0)
    assert said["reconstruction"] == pictures.to_url(seen.reconstruction)
    drawn = ask(url, "draw", json.dumps({"class": "7", "capsule": said["capsule"]}).encode())
    assert drawn["reconstruction"].startswith("data:image/png;base64,")
    pair = ask(url, "separate?second=5", png(explorer.pair.test_set.batch(0, 1).images[0]))
    assert pair["classes"][1] == "5"
    assert len(pair["reconstructions"]) == 2
    turned = ask(url, "turn?rotation=20&down=1", png(digit(0)))
    assert (turned["class"], turned["cnn"].keys()) == ("7", said["lengths"].keys())
    assert turned["image"] == pictures.to_url(answers.turn(explorer, digit(0), 20, 1, 0, 1).image)
    assert ask(url, "turn", png(digit(0)))["angle"] < 0.1  # what is left out changes nothing


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("look", b"garbage", "not a picture that can be read"),
        ("look", b"0" * 10_500_000, "the limit is 10 MB"),
        ("draw", b"garbage", "send JSON"),
        ("draw", b'["7"]', "send JSON"),
        ("draw", b'{"class": "7", "capsule": [1, 2]}', "16 numbers"),
        ("draw", b'{"class": "eleven", "capsule": []}', "there is no class 'eleven'; there are: 0, 1"),
        ("separate?first=x", png(PALE), "there is no class 'x'"),
        ("turn?rotation=1000", png(PALE), "from -60 to 60, not 1000"),
        ("turn?scale=big", png(PALE), "scale: Input should be a valid number"),
        ("turn?down=nan", png(PALE), "from -10 to 10, not nan"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_the_api_says_what_is_wrong(url, path, body, told):
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(url, path, body)
    assert refused.value.code == 400
    assert told in json.load(refused.value)["error"]


def test_the_examples_in_the_documentation_work(url, explorer, tmp_path):
    text = (Path(__file__).parents[1] / "docs" / "explorer.md").read_text().replace("http://127.0.0.1:7860", url)
    (tmp_path / "digit.png").write_bytes(png(digit(0)))
    (tmp_path / "pair.png").write_bytes(png(explorer.pair.test_set.batch(0, 1).images[0]))
    program = re.search("```python\n(.*?)```", text, re.DOTALL)[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith("7 {'0': 0.0"), done.stderr
    commands = re.findall(r"^\$ (curl .*)$", text, re.MULTILINE)
    assert len(commands) == 3
    if shutil.which("curl"):
        for command in commands:
            said = json.loads(subprocess.check_output([*shlex.split(command), "--silent"], cwd=tmp_path))
            assert ("classes" in said) == ("separate" in command)


def test_the_command_serves_until_it_is_interrupted(tmp_path):
    command = [sys.executable, "-m", "capsnet", "explore", "--port", "0", "--no-browser"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    address = server.stdout.readline().split()[0]
    assert ask(address, "look", png(digit(0)))["class"] == "7"
    server.send_signal(signal.SIGINT)
    out, err = server.communicate(timeout=30)
    assert (server.returncode, out, err) == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_without_gradio_it_says_what_to_install(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gradio" else find(name))
    assert cli.main(["explore"]) == 2
    assert "pip install 'capsnet[explorer]'" in capsys.readouterr().err


def test_it_stays_up_under_garbage(url, explorer, capfd):
    """Random bodies, wrong types, huge and endless bodies, paths that no page needs; then it answers as before."""
    draw = random.Random(0)
    port = int(url.rsplit(":", 1)[1])

    def throw(path, body):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            return connection.getresponse().status
        except (BrokenPipeError, ConnectionResetError):  # refused while we were still talking
            return 413
        finally:
            connection.close()

    functions = build(explorer).fns
    values = [None, 1, "x", [], {}, [[]], {"number": -1}, 1e308, "data:image/png;base64,AAAA", True]
    part = {"down": 0, "right": [], "turn": "x", "there": None}
    values += [{"number": 3, "kind": "face", "parts": parts} for parts in ([1] * 4, [part] * 4, [{}] * 4, {})]
    values += [{"number": 1, "capsule": ["x"], "offsets": [1]}, {"turn": 10**400, "items": 1}, 10**400]
    values += [{"number": [], "capsule": [0] * 16, "offsets": [0] * 16}]
    for _ in range(100):
        number = draw.choice([-1, "x", *functions])
        data = [draw.choice(values) for _ in (functions[number].inputs if number in functions else "two")]
        body = {"data": data, "fn_index": number, "event_data": draw.choice(values), "session_hash": "x"}
        assert throw("/gradio_api/run/predict", json.dumps(body)) in (200, 400)
        path = draw.choice(["look", "draw", "turn", "separate", "none"])
        assert throw(f"/api/{path}", draw.choice([draw.randbytes(300), json.dumps(body)])) in (400, 404, 405)
    assert throw("/api/look", b"0" * 16_000_000) == 413
    assert throw("/api/look", (b"0" * 100_000 for _ in range(200))) >= 400  # in chunks, of unknown length
    assert throw("/gradio_api/upload", b"x") == 404
    assert ask(url, "look", png(digit(0)))["class"] == "7"
    assert "Traceback" not in capfd.readouterr().err


def test_fifty_clients_at_once_are_all_answered(url):
    expected = [ask(url, "look", png(digit(k)))["class"] for k in range(50)]

    def client(number):
        with urllib.request.urlopen(url, timeout=60) as opened:
            assert opened.status == 200
        return [ask(url, "look", png(digit(number)), timeout=60)["class"] for _ in range(3)]

    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        said = list(pool.map(client, range(50)))
    assert said == [[name] * 3 for name in expected]


def test_one_answer_is_computed_at_a_time(url, monkeypatch):
    """Two figures drawn at once would mix up Matplotlib's settings, and 40 answers at once would starve each other."""
    agree, under_way, most = answers.agree, [], []

    def watched(*arguments):
        under_way.append(1)
        time.sleep(0.01)
        most.append(len(under_way))
        under_way.pop()
        return agree(*arguments)

    monkeypatch.setattr(answers, "agree", watched)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, url, "look", png(digit(0))) for _ in range(8)]
        asked += [pool.submit(call, url, 0, as_url(png(digit(0)))) for _ in range(8)]
        said = [each.result() for each in asked]
    assert "It sees 7" in said[-1][0]
    assert most == [1] * 16


def test_an_update_takes_under_100_milliseconds_on_one_core(url):
    """A picture and its answer over the wire, with one thread for the network's arithmetic."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        page = png(digit(0))
        capsule = json.dumps({"class": "7", "capsule": ask(url, "look", page)["capsule"]}).encode()
        for path, body in (("look", page), ("draw", capsule), ("turn?rotation=5", page), ("separate", page)):
            seconds = []
            for _ in range(15):
                started = time.perf_counter()
                ask(url, path, body)
                seconds.append(time.perf_counter() - started)
            assert sorted(seconds)[7] < 0.1, path
    finally:
        torch.set_num_threads(threads)


def test_nothing_is_sent_anywhere(explorer, monkeypatch):
    """From start to answer no connection is opened but those of the clients, and no name is looked up."""
    import socket

    opened = []
    connect, lookup = socket.socket.connect, socket.getaddrinfo

    def watched(self, address):
        opened.append(address)
        return connect(self, address)

    def watched_lookup(host, *rest, **named):
        opened.append((host,))
        return lookup(host, *rest, **named)

    monkeypatch.setattr(socket.socket, "connect", watched)
    monkeypatch.setattr(socket, "getaddrinfo", watched_lookup)
    with serving(explorer) as address:
        ask(address, "look", png(digit(0)))
        time.sleep(0.5)
    hosts = {str(address[0]) for address in opened if isinstance(address, tuple)}
    assert hosts <= {"127.0.0.1", "localhost", "::1"}
    assert threading.active_count() < 100


def test_under_a_foreign_name_it_does_not_answer(url):
    port = int(url.rsplit(":", 1)[1])
    for host, status in (("localhost", 200), (f"127.0.0.1:{port}", 200), (f"evil.example:{port}", 403), ("", 403)):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/", headers={"Host": host})
        assert connection.getresponse().status == status, host
        connection.close()


def test_for_a_foreign_page_it_does_not_work(url):
    port = int(url.rsplit(":", 1)[1])
    for origin, status in ((url, 200), ("http://evil.example", 403), ("http://127.0.0.1:9", 403), ("null", 403)):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("POST", "/api/look", png(digit(0)), headers={"Origin": origin})
        assert connection.getresponse().status == status, origin
        connection.close()
