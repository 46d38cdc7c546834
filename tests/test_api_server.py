"""Around the API: keys, limits, time, disconnection, back-pressure, logs, metrics, an orderly end."""

import json
import socket
import threading
from pathlib import Path

import httpx
import pytest
from serve_cases import NEVER, ScriptedEngine, serving

from anychip.errors import ConfigError, InputError
from anychip.serve.api.app import make_app
from anychip.serve.api.gate import OPEN_PATHS
from anychip.serve.api.keys import Keys, Usage, read_keys
from anychip.serve.api.settings import ApiSettings, check_exposure, served_hosts
from anychip.serve.request import Busy, EngineError

SECRET = "sk-0123456789abcdef-secret"
HTTP = httpx.Client()  # making one reads certificates, which takes long
ASKED = {"model": "test", "messages": [{"role": "user", "content": "my private words"}]}
KEYED = {"Authorization": f"Bearer {SECRET}"}


def keys(folder: Path, **limits: int) -> Keys:
    more = "".join(f"{k} = {v}\n" for k, v in limits.items())
    (folder / "keys.toml").write_text(f'[alice]\nkey = "{SECRET}"\n{more}')
    return read_keys(folder / "keys.toml")


def test_without_a_valid_key_nothing_is_served(tmp_path) -> None:
    engine = ScriptedEngine(lambda _: "Hello")
    with serving(engine, keys=keys(tmp_path)) as (url, _log):
        document = make_app(engine, ApiSettings("test"))._app.openapi()
        paths = {path.replace("{name}", "test"): list(methods) for path, methods in document["paths"].items()}
        for path, methods in [*paths.items(), ("/openapi.json", ["get"]), ("/nowhere", ["get"])]:
            for method in methods:
                for headers in ({}, {"Authorization": "Bearer wrong"}, {"x-api-key": SECRET[:-1]}):
                    found = HTTP.request(method.upper(), url + path, headers=headers, json=ASKED)
                    assert found.status_code == (200 if path in OPEN_PATHS else 401), (path, headers)
        assert not engine.requests
        for headers in (KEYED, {"x-api-key": SECRET}):
            assert HTTP.post(f"{url}/v1/chat/completions", json=ASKED, headers=headers).status_code == 200


def test_keys_prompts_and_answers_are_never_logged(tmp_path) -> None:
    def script(_: str) -> str:
        raise RuntimeError(f"a bug that knows {SECRET}")

    for engine in (ScriptedEngine(lambda _: "my private answer"), ScriptedEngine(script)):
        with serving(engine, keys=keys(tmp_path)) as (url, log):
            found = HTTP.post(f"{url}/v1/chat/completions?key={SECRET}", json=ASKED, headers=KEYED)
            HTTP.post(f"{url}/v1/chat/completions", json=ASKED | {"n": SECRET}, headers=KEYED)
            HTTP.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {SECRET}x"})
        lines = [json.loads(line) for line in log.getvalue().splitlines()]
        assert SECRET not in log.getvalue() and "private" not in log.getvalue() and SECRET not in found.text
        assert {"alice"} == {line["key"] for line in lines if "key" in line}
    assert found.status_code == 500 and "Traceback" not in found.text and "x-request-id" in found.headers
    failure = next(line for line in lines if line["event"] == "failure")
    assert "[key]" in failure["traceback"] and failure["id"] == found.headers["x-request-id"]


def test_limits_of_a_key(tmp_path) -> None:
    with serving(ScriptedEngine(lambda _: "Hello"), keys=keys(tmp_path, requests_per_minute=2)) as (url, _log):
        codes = [HTTP.post(f"{url}/v1/chat/completions", json=ASKED, headers=KEYED) for _ in range(3)]
    assert [found.status_code for found in codes] == [200, 200, 429]
    assert 1 <= int(codes[2].headers["retry-after"]) <= 60
    assert "2 requests a minute" in codes[2].json()["error"]["message"]
    usage = Usage(keys(tmp_path, tokens_per_minute=100, max_in_flight=1).find(SECRET))
    usage.begin(0.0)
    assert usage.wait_s(1.0)[1] == "1 requests at once"
    usage.end(2.0, 100)
    assert usage.wait_s(32.0) == (30.0, "100 tokens a minute") and usage.wait_s(63.0) is None


def test_key_files_are_refused_with_every_reason_and_no_key(tmp_path) -> None:
    (tmp_path / "k.toml").write_text(f'a = 1\n[b]\nkey = "short"\n[c]\nkey = "{SECRET}"\nmax_in_flight = 0\nx = 1\n'
                                     f'[d]\nkey = "{SECRET}"\n')
    with pytest.raises(InputError, match="a must be a table.*b: key.*c: unknown x.*c: max_in.*same key") as found:
        read_keys(tmp_path / "k.toml")
    assert SECRET not in str(found.value)
    with pytest.raises(ConfigError, match="--api-key-file"):
        check_exposure("0.0.0.0", Keys(), False)


def test_bodies_too_large_or_too_slow_are_refused() -> None:
    with serving(ScriptedEngine(lambda _: "Hello"), max_body_bytes=1000, body_timeout_s=0.3) as (url, _log):
        assert HTTP.post(f"{url}/v1/completions", content=b"x" * 1001).status_code == 413
        chunks = HTTP.post(f"{url}/v1/completions", content=iter([b"x" * 600] * 2))
        assert chunks.status_code == 413 and chunks.json()["error"]["code"] == "request_too_large"
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as slow:
            slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{")
            assert b"408" in slow.recv(4096).split(b"\r\n")[0]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_request(stream: bool) -> None:
    left = threading.Event()
    engine = ScriptedEngine(lambda _: "on and on" + NEVER)
    ends = engine._abort
    engine._abort = lambda request_id: (ends(request_id), left.set())
    with serving(engine) as (url, log):
        with pytest.raises(httpx.ReadTimeout), HTTP.stream("POST", f"{url}/v1/chat/completions", timeout=0.3,
                                                            json=ASKED | {"stream": stream}) as found:
            list(found.iter_bytes())
        assert left.wait(5) and engine.aborted == [engine.requests[0].request_id]
    assert '"disconnected": true' in log.getvalue()


def test_a_full_queue_is_429_and_a_dead_engine_503() -> None:
    for error, status in ((Busy("512 requests wait already", 2.2), 429), (EngineError("gone"), 503)):
        engine = ScriptedEngine(lambda _: "Hello")
        engine.submit = lambda _request, error=error: (_ for _ in ()).throw(error)
        with serving(engine) as (url, _log):
            for path in ("chat/completions", "messages"):
                found = HTTP.post(f"{url}/v1/{path}", json=ASKED | {"max_tokens": 9, "stream": True})
                assert found.status_code == status and int(found.headers["retry-after"]) == (3 if status == 429 else 1)
                assert ("overloaded" in found.text) == (status == 503 and path == "messages")


def test_answers_in_flight_are_told_when_the_server_ends() -> None:
    engine = ScriptedEngine(lambda _: "on and on" + NEVER)
    with serving(engine) as (url, _log), HTTP.stream("POST", f"{url}/v1/chat/completions", timeout=9,
                                                      json=ASKED | {"stream": True}) as found:
        lines = found.iter_lines()
        next(lines)
        threading.Timer(0.1, engine.stop).start()
        last = [line for line in lines if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "aborted"


def test_only_named_hosts_and_origins_are_answered() -> None:
    with serving(ScriptedEngine(lambda _: "Hello"), hosts=served_hosts("127.0.0.1"),
                 origins=("https://ok.example",)) as (url, _log):
        assert HTTP.get(f"{url}/v1/models", headers={"Host": "evil.example"}).status_code == 403
        for origin, allowed in (("https://ok.example", "https://ok.example"), ("https://evil.example", None)):
            found = HTTP.get(f"{url}/v1/models", headers={"Origin": origin})
            assert found.headers.get("access-control-allow-origin") == allowed
        asked = {"Origin": "https://ok.example", "Access-Control-Request-Method": "POST"}
        assert HTTP.options(f"{url}/v1/chat/completions", headers=asked).status_code == 204


def test_metrics_and_statistics() -> None:
    with serving(ScriptedEngine(lambda _: "Hello")) as (url, _log):
        HTTP.post(f"{url}/v1/chat/completions", json=ASKED)
        text, stats = HTTP.get(f"{url}/metrics").text, HTTP.get(f"{url}/v1/stats").json()
    assert 'anychip_http_requests_total{path="/v1/chat/completions",status="200"} 1.0' in text
    assert "anychip_ttft_seconds_count 1.0" in text and "anychip_engine_finished_total 1.0" in text
    assert stats["finished"] == 1 and stats["kind"] == "measured" and stats["acceptance"] is None


def test_tokenize_and_back() -> None:
    with serving(ScriptedEngine(lambda _: "Hello")) as (url, _log):
        ids = HTTP.post(f"{url}/v1/tokenize", json={"prompt": "Hello <think> é"}).json()
        assert HTTP.post(f"{url}/v1/detokenize", json={"tokens": ids["tokens"]}).json() == {"prompt": "Hello <think> é"}
        chat = HTTP.post(f"{url}/v1/tokenize", json={"messages": ASKED["messages"]}).json()
        assert chat["tokens"][:2] == [0, 3] and chat["count"] == len(chat["tokens"])
        assert HTTP.post(f"{url}/v1/tokenize", json={}).status_code == 400
