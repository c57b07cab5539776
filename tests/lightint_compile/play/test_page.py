"""What goes over the socket: by starlette's client, without a browser."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from lightint_compile.cli import main
from lightint_compile.errors import InputError
from lightint_compile.models.registry import TINY, TRUE
from lightint_compile.play.needed import check_packages
from lightint_compile.play.opening import Played

pytest.importorskip("starlette", reason="the extra `play` is not installed")
pytest.importorskip("httpx", reason="starlette's test client sends with it")
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from lightint_compile.play.app import ASSETS, make_app

pytestmark = pytest.mark.filterwarnings("ignore:.*no trained weights")
SMALL = TRUE.replace("base", "tiny")
PNG = b"\x89PNG\r\n\x1a\n"


def client_of(name: str) -> Iterator[TestClient]:
    played = Played.open(name, preset="all", device="cpu", options={"delegate": "eager"})
    with ThreadPoolExecutor(1) as thread, TestClient(make_app(played, thread)) as client:
        yield client


@pytest.fixture
def client() -> Iterator[TestClient]:
    yield from client_of(SMALL)


def told(socket: Any) -> dict[str, Any]:
    """The next message but those that say that the camera stands still."""
    while (message := socket.receive_json())["kind"] == "still":
        continue
    return message


def shown(socket: Any) -> dict[str, Any]:
    """The next chunk, all of its pictures read."""
    message = told(socket)
    assert message["kind"] == "chunk", message
    pictures = [socket.receive_bytes() for _ in range(message["pictures"])]
    assert all(each.startswith(PNG) for each in pictures)
    return {**message, "png": pictures}


def test_the_page_and_its_parts_are_served_and_nothing_else(client: TestClient) -> None:
    for path, (_, kind) in ASSETS.items():
        answer = client.get(path)
        assert answer.status_code == 200 and answer.headers["content-type"].startswith(kind)
    assert "/play.js" in client.get("/").text and client.get("/other").status_code == 404


def test_a_walk_goes_on_while_a_key_is_held_and_stops_when_none_is(client: TestClient) -> None:
    with client.websocket_connect("/walk") as socket:
        hello = socket.receive_json()
        assert hello["kind"] == "hello" and hello["name"] == SMALL and hello["preset"] == "all"
        assert len(hello["walls"]) == 16 and set("".join(hello["walls"])) == {"0", "1"}
        first = shown(socket)
        assert first["chunk"] == 0 and first["made"] == [0, 4] and first["milliseconds"] is None
        socket.send_json({"kind": "accelerate", "on": False})
        socket.send_json({"kind": "keys", "keys": ["left"]})
        turned = [shown(socket) for _ in range(2)]
        socket.send_json({"kind": "keys", "keys": []})
        headings = [place[2] for each in (first, *turned) for place in each["places"]]
        assert headings[0] == headings[3] != headings[4] and len(headings) == 12
        assert all(each["says"].startswith("the model by itself") for each in turned)
        assert turned[0]["milliseconds"] > 0 and turned[0]["png"] != turned[1]["png"]


def test_another_walk_begins_at_once_and_a_new_page_ends_the_old_one(client: TestClient) -> None:
    with client.websocket_connect("/walk") as old:
        assert old.receive_json()["kind"] == "hello" and shown(old)["chunk"] == 0
        old.send_json({"kind": "again", "seed": 5})
        hello = told(old)
        assert hello["kind"] == "hello" and shown(old)["chunk"] == 0
        with client.websocket_connect("/walk") as new:
            assert new.receive_json()["walls"] != hello["walls"]
            assert told(old)["kind"] == "replaced"
            with pytest.raises(WebSocketDisconnect):
                old.receive_json()


def test_a_script_of_another_site_may_not_steer(client: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/walk", headers={"origin": "http://other"}):
        pass
    with client.websocket_connect("/walk", headers={"origin": "http://testserver"}) as socket:
        assert socket.receive_json()["kind"] == "hello"


def test_what_is_no_message_is_let_be_and_an_error_is_told(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise InputError("it does not fit", where="here")

    with client.websocket_connect("/walk") as socket:
        socket.receive_json(), shown(socket)
        monkeypatch.setattr("lightint_compile.play.walking.Walking.go", broken)
        for message in ([], {"kind": "other"}, {"kind": "keys", "keys": ["w"]}):
            socket.send_json(message)
        assert told(socket) == {"kind": "error", "says": "it does not fit · at here"}


def test_a_model_without_a_place_of_its_own_is_played_without_walls() -> None:
    for client in client_of(TINY):
        with client.websocket_connect("/walk") as socket:
            assert socket.receive_json()["walls"] is None
            socket.send_json({"kind": "accelerate", "on": False})
            socket.send_json({"kind": "keys", "keys": ["w", "right"]})
            made = shown(socket)
            assert made["chunk"] == 0 and len(made["places"]) == 4


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(InputError, match=r"lightint\[play\]"):
        check_packages()
    monkeypatch.setattr(sys, "argv", ["lightint", "play"])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.count("\n") == 1 and "pip install 'lightint[play]'" in said


def test_it_compiles_then_serves(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import uvicorn

    from lightint_compile.play.serving import play

    def stopped(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        served.extend(each.getsockname() for each in sockets)
        raise KeyboardInterrupt

    served: list[tuple[str, int]] = []
    monkeypatch.setattr(Played, "warm_up", lambda self: iter([1, 0]))
    monkeypatch.setattr(uvicorn.Server, "run", stopped)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"--port {port}"):
            play(SMALL, port=port, preset="exact", device="cpu")
    play(SMALL, port=port, preset="exact", device="cpu")
    assert served == [("127.0.0.1", port)]
    assert f"http://127.0.0.1:{port}" in capsys.readouterr().out
