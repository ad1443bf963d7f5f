"""The lab answers only requests from its page.

It checks the token, the host, the origin, the password and the path of each request.
"""

import base64
import json
from urllib.parse import quote

import pytest

from nanogpt.lab.security import Guard
from tests.lab.conftest import Client


@pytest.mark.parametrize("path", ["", "runs", "page/lab.js", "x/../runs", "wrongtoken/runs"])
def test_an_address_without_the_token_is_refused(client: Client, path: str) -> None:
    status, raw, _ = client.request(f"http://127.0.0.1:{client.port}/{path}")
    assert (status, raw) == (403, b"open the whole address that the lab prints")


def test_another_host_name_is_refused(client: Client) -> None:
    """With DNS rebinding, the name of another site resolves to the address of this server."""
    for host in ("evil.example", f"evil.example:{client.port}", "127.0.0.1", "127.0.0.1:1"):
        assert client.request("runs", headers={"Host": host})[0] == 403


def test_another_origin_is_refused(client: Client) -> None:
    for origin in ("http://evil.example", "null", f"https://127.0.0.1:{client.port}"):
        for path in ("runs", "pause"):
            assert client.request(path, headers={"Origin": origin})[0] == 403
    own = {"Origin": f"http://127.0.0.1:{client.port}"}
    assert client.request("runs", headers=own)[0] == 200


def test_every_answer_has_a_strict_policy(client: Client) -> None:
    for path in ("", "runs", "page/lab.js", "nothing", f"http://127.0.0.1:{client.port}/"):
        headers = {name.lower(): value for name, value in client.request(path)[2].items()}
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["connect-src"] == policy["style-src"] == "'self'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    "name", ["../server.py", "..%2fserver.py", "%2e%2e/server.py", "..\\server.py", "x.py", ""]
)
def test_only_files_of_the_page_are_sent(client: Client, name: str) -> None:
    assert client.request(f"page/{name}")[0] == 404


@pytest.mark.parametrize("name", ["..", ".", "/", "../runs/one", "one/best", "", "../../etc"])
def test_only_offered_runs_are_read(client: Client, name: str) -> None:
    message = client.problem("metrics", run=name)
    assert message == f"there is no run {name!r} any more: choose another run"


def test_a_password_is_asked_for() -> None:
    guard = Guard(lambda *_: None, "token", None, "sesame")  # type: ignore[arg-type]

    def status(*headers: tuple[bytes, bytes]) -> int:
        answer = guard.refuse({"type": "http", "path": "/token/", "headers": [*headers]})
        return answer.status_code if answer else 200

    def login(password: str) -> tuple[bytes, bytes]:
        return b"authorization", b"Basic " + base64.b64encode(f"user:{password}".encode())

    assert status() == 401
    assert status(login("wrong")) == 401
    assert status((b"authorization", b"Basic !")) == 401
    assert status((b"authorization", b"Bearer sesame")) == 401
    assert status(login("sesame")) == 200


def test_a_hostile_prompt_is_only_data(client: Client) -> None:
    prompt = "</script><img src=x onerror=alert(1)>"
    message = client.problem("inspect", run="one", prompt=prompt)
    assert message.startswith("the tokenizer does not know the characters '('")
    status, raw, headers = client.request(f"inspect?run=one&prompt={quote('abc')}")
    assert (status, headers["content-type"]) == (200, "application/json")
    assert json.loads(raw)["tokens"] == ["a", "b", "c"]
