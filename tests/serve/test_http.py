"""`edgeladder serve` as clients meet it: the real command, asked over real connections."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from edgeladder.cli import app as application
from edgeladder.core.inference import InferenceRequest
from edgeladder.serve.server import bind, serve
from edgeladder.serve.settings import Address, Limits
from tests.serve.conftest import Server, serving


@pytest.fixture(scope="module")
def server(nano_run):
    with serving(nano_run, "--max-body", "300KB", "--waiting", "4") as running:
        yield running
        assert_answers(running, running.picture)


@pytest.fixture(autouse=True)
def picture(request, pictures):
    if "server" in request.fixturenames:
        request.getfixturevalue("server").picture = pictures[0]
    return pictures[0]


def assert_answers(server: Server, picture: Path) -> None:
    assert server.predict(picture)[0] == 200


def error_of(answer, status: int) -> dict[str, str | None]:
    code, body, headers = answer
    assert code == status, answer
    assert set(body) == {"error"}
    assert body["error"]["where"] is None
    assert headers["x-content-type-options"] == "nosniff"
    return body["error"]


def test_a_picture_is_answered_as_predict_answers_it(server, pictures, nano_run, capfd):
    assert application.main(["predict", str(pictures[5]), "--run", str(nano_run), "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    code, body, headers = server.predict(pictures[5], Content_Type="image/png")
    assert code == 200
    assert set(body) == {"predictions", "asked"}
    (item,) = body["predictions"]
    (expected,) = said["predictions"]
    assert item["path"] == "picture"
    assert item["labels"][0]["label"] == expected["labels"][0]["label"]
    given = item["labels"][0]["probability"]
    assert given == pytest.approx(expected["labels"][0]["probability"], abs=1e-5)
    assert set(item) == set(expected)
    assert headers["cache-control"] == "no-store"


def form(content: bytes, name: str = "a.png", field: str = "picture") -> tuple[bytes, str]:
    head = f'--x\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n'
    return head.encode() + b"\r\n" + content + b"\r\n--x--\r\n", "multipart/form-data; boundary=x"


def test_a_form_gives_its_name_back_without_folders(server, picture):
    body, kind = form(picture.read_bytes(), "../../etc/dress.png")
    code, found, _ = server.ask("POST", "/predict?top=3", body, Content_Type=kind)
    assert code == 200
    assert found["predictions"][0]["path"] == "dress.png"
    assert len(found["predictions"][0]["labels"]) == 3


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"--x\r\nnonsense\r\n", "multipart/form-data; boundary=x"),
        (b"anything", "multipart/form-data"),
        (form(b"")[0], "multipart/form-data; boundary=x"),
        (b"--x--\r\n", "multipart/form-data; boundary=x"),
    ],
)
def test_a_broken_form_is_one_error(server, body, kind):
    assert error_of(server.ask("POST", "/predict", body, Content_Type=kind), 400)["message"]


def test_what_is_no_picture(server, picture):
    damaged = picture.read_bytes()[:400]
    assert "damaged" in error_of(server.ask("POST", "/predict", damaged), 422)["message"]
    assert "not a picture" in error_of(server.ask("POST", "/predict", b"hello"), 422)["message"]
    assert error_of(server.ask("POST", "/predict", b""), 400)["message"]
    found = error_of(server.ask("POST", "/predict", b"{}", Content_Type="application/json"), 415)
    assert "application/json" in found["message"]


def test_a_huge_picture_in_a_small_file(server):
    head = b"P6 60000 60000 255\n"  # ten gigabytes decoded
    found = error_of(server.ask("POST", "/predict", head + b"\0" * 1000), 422)
    assert "60000 x 60000" in found["message"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit(server, chunked):
    body = b"\0" * 400_000
    answer = server.ask("POST", "/predict", iter([body]) if chunked else body)
    assert "larger than 0.3 MB" in error_of(answer, 413)["message"]


def test_a_body_that_claims_gigabytes_is_refused_at_once(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as line:
        line.sendall(
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999999\r\n\r\n"
        )
        assert line.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "query",
    [
        "?top=0",
        "?top=x",
        "?top=-1",
        "?top=99999999999",
        "?top=²",
        "?top=000000001999",
        "?top=000000001" + "9" * 5000,
    ],
)
def test_an_impossible_number_of_labels(server, picture, query):
    from urllib.parse import quote

    error_of(server.predict(picture, quote(query, safe="?=")), 400)


def test_other_places_and_methods(server):
    error_of(server.ask("GET", "/nowhere"), 404)
    error_of(server.ask("GET", "/../../etc/passwd"), 404)
    answer = server.ask("GET", "/predict")
    error_of(answer, 405)
    assert answer[2]["allow"] == "POST"
    error_of(server.ask("POST", "/", b"x"), 405)


def test_a_name_pointed_here_and_a_page_of_another_site(server, picture):
    """DNS rebinding, and a form or script elsewhere."""
    assert error_of(server.ask("GET", "/", Host="evil.example"), 421)["remedy"]
    assert error_of(server.ask("GET", "/health", Host="127.0.0.1.evil.example"), 421)
    assert error_of(server.predict(picture, Origin="https://evil.example"), 403)
    assert error_of(server.predict(picture, Origin="null"), 403)
    assert error_of(server.predict(picture, Sec_Fetch_Site="cross-site"), 403)
    own = f"http://127.0.0.1:{server.port}"
    assert server.predict(picture, Origin=own, Sec_Fetch_Site="same-origin")[0] == 200


def test_health_metrics_and_page(server, picture):
    assert_answers(server, picture)
    assert server.ask("GET", "/health")[1] == {"status": "ok", "token": False}
    code, text, headers = server.ask("GET", "/metrics")
    assert code == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'edgeladder_requests_total{status="200"}' in text
    assert "edgeladder_worker_ready 1\n" in text
    for line in text.splitlines():
        assert line.startswith("#") or len(line.split()) == 2
    for path in ("/", "/page.js", "/page.css"):
        code, text, headers = server.ask("GET", path)
        assert code == 200
        assert text
        assert "default-src 'none'" in headers["content-security-policy"]


def test_more_than_may_wait_come_again_later(server, picture):
    with ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda _: server.predict(picture), range(30)))
    codes = [code for code, _, _ in answers]
    assert set(codes) == {200, 503}
    refused = next(answer for answer in answers if answer[0] == 503)
    assert refused[2]["retry-after"]
    assert refused[1]["error"]["type"] == "BusyError"


def test_nothing_of_the_machine_is_in_an_answer(server, picture, nano_run):
    answers = [server.ask("POST", "/predict", b"no"), server.ask("GET", "/metrics")]
    answers += [server.ask("GET", "/"), server.predict(picture)]
    for answer in answers:
        text = json.dumps([answer[1], answer[2]])
        assert str(nano_run) not in text
        assert "/var/tmp" not in text
        assert "/tmp" not in text
        assert "uvicorn" not in text


def test_a_worker_that_dies_is_followed_by_another(server, picture):
    """The picture it died on is answered with what happened, the next one as ever."""
    (worker,) = psutil.Process(server.process.pid).children()
    worker.suspend()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.predict, picture)
        until(lambda: "edgeladder_waiting_pictures 1\n" in server.ask("GET", "/metrics")[1])
        worker.kill()
        answer = asked.result()
    found = error_of(answer, 503)
    assert found["type"] == "BudgetError"
    assert "the worker ended over this picture" in found["message"]
    assert answer[2]["retry-after"]
    assert_answers(server, picture)  # waits for the new one
    assert "edgeladder_worker_restarts_total 1\n" in server.ask("GET", "/metrics")[1]


def until(true, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_nothing_is_left_of_pictures_on_their_way(server, picture):
    assert_answers(server, picture)
    environment = psutil.Process(server.process.pid).children()[0].environ()
    folder = Path(environment["TMPDIR"])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not list(folder.glob("*.picture"))


TOKEN = "a-token-of-some-length"
SHORT = "import edgeladder.serve.settings as s, dataclasses as d\n"


def test_beyond_this_machine_a_token_is_needed(nano_run, picture):
    with serving(nano_run, "--host", "0.0.0.0", environment={"EDGELADDER_TOKEN": TOKEN}) as server:
        for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
            answer = server.predict(picture, **given)
            assert error_of(answer, 401)["remedy"]
            assert answer[2]["www-authenticate"].startswith("Bearer")
        error_of(server.predict(picture, f"?token={TOKEN}"), 401)
        error_of(server.ask("GET", "/metrics"), 401)
        assert server.predict(picture, Authorization=f"Bearer {TOKEN}")[0] == 200
        assert server.ask("GET", "/health")[1] == {"status": "ok", "token": True}
        assert server.ask("GET", "/")[0] == 200
        error_of(server.ask("GET", "/", Host="evil.example"), 421)
        for process in psutil.Process(server.process.pid).children():
            assert TOKEN not in json.dumps(process.environ())
        assert not any(TOKEN in line for line in server.lines)
        assert server.end() == (0, "1 pictures answered in 9 requests\n")


def test_a_token_is_made_where_none_is_given(nano_run, picture, tmp_path):
    with serving(nano_run, "--host", "0.0.0.0") as server:
        token = server.says("token: ").split()[1]
        assert len(token) >= 32
        assert server.predict(picture, Authorization=f"Bearer {token}")[0] == 200
        assert server.end(signal.SIGINT)[0] == 130


def test_who_reads_the_address_is_answered_at_once(nano_run):
    answers = []

    def log(line: str) -> None:
        if line.startswith("listening on "):
            port = int(line.rstrip("/").rpartition(":")[2])
            with socket.create_connection(("127.0.0.1", port), timeout=5):  # before the loop runs
                answers.append(line)
            os.kill(os.getpid(), signal.SIGTERM)

    request = InferenceRequest(command="serve", run=str(nano_run), budget_bytes=400_000_000)
    serve(request, Address(port=0), Limits(), None, log)
    assert len(answers) == 1


def test_answers_are_not_held_back_for_an_acknowledgement():
    """asyncio asks for TCP_NODELAY on sockets that say they are TCP's."""
    with bind(Address(port=0)) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def refused(capfd, *words: str) -> str:
    assert application.main(["serve", *words, "--json"]) == 2
    return json.loads(capfd.readouterr().out)["error"]["message"]


def test_what_is_wrong_is_said_before_the_start(nano_run, tmp_path, capfd, monkeypatch):
    run = ["--run", str(nano_run), "--port", "0"]
    loose = tmp_path / "token"
    loose.write_text(TOKEN)
    loose.chmod(0o644)
    assert "others can read" in refused(capfd, *run, "--token-file", str(loose))
    loose.chmod(0o600)
    loose.write_text("short")
    assert "not a token" in refused(capfd, *run, "--token-file", str(loose))
    assert "cannot listen" in refused(capfd, "--run", str(nano_run), "--host", "192.0.2.7")
    assert "certificate" in refused(capfd, *run, "--certificate", str(loose))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    signal.alarm(60)  # ends the tests rather than wait for ever
    assert "pipe" in refused(capfd, *run, "--certificate", str(pipe))
    assert "pipe" in refused(capfd, *run, "--token-file", str(pipe))
    signal.alarm(0)
    assert "no run" in refused(capfd, "--run", str(tmp_path / "nowhere"))
    monkeypatch.setenv("EDGELADDER_TOKEN", "x\ny")
    assert "not a token" in refused(capfd, *run)


def test_a_token_file_is_made_and_used_again(tmp_path):
    from edgeladder.serve.token import allows, token_from

    path = tmp_path / "token"
    token = token_from(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token_from(path) == token
    assert allows(token, f"Bearer {token}")
    assert not allows(token, None)
    assert not allows(token, f"Bearer {token}x")
    assert os.fspath(path)
