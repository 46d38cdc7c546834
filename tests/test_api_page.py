"""The chat page in headless Chromium: send, stream, fold, stop, tools, keys, dark, a phone, no other request."""

import pytest
from browser import CHROMIUM, browser
from serve_cases import NEVER, ScriptedEngine, serving
from test_api_openai_client import CALL, TOOLS

from anychip.serve.api.keys import read_keys

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; `apt-get install chromium` brings it")
LAST = "document.querySelector('#log .answer:last-of-type')"
IDLE = "!document.querySelector('.busy') && document.querySelector('#send').hidden === false"


def script(prompt: str) -> str:
    if "<tool_result>" in prompt:
        return "It is noon."
    if "## Tools" in prompt:
        return CALL
    if "for ever" in prompt:
        return "on and on " + NEVER
    answer = "Use `x`:\n```py\nprint('<b>1</b>')\n```\n<img src=x onerror=alert(1)> done"
    return f"Let me think.</think>{answer}" if prompt.endswith("<think>") else answer


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture(scope="module")
def server():
    with serving(ScriptedEngine(script)) as (url, _log):
        yield url


def say(page, text: str) -> None:
    page.until("document.querySelector('#model').textContent.startsWith('test')")
    page.run("document.querySelector('#input').focus()")
    page.write(text)
    page.key("Enter")
    page.until(f"document.querySelectorAll('#log .answer').length > 0 && {LAST}.textContent.length > 3")


def test_an_answer_is_streamed_and_shown_as_text_with_thinking_folded(page, server) -> None:
    page.errors.clear()
    page.requests.clear()
    page.open(server)
    page.run("document.querySelector('#thinking').value = 'high'")
    say(page, "Hello")
    page.until(IDLE)
    assert page.run(f"{LAST}.querySelector('pre').textContent") == "print('<b>1</b>')"
    assert page.run(f"{LAST}.querySelector('code').textContent") == "x"
    assert page.run(f"{LAST}.querySelector('img')") is None
    assert page.run(f"{LAST}.querySelector('details').open") is False
    assert page.run(f"{LAST}.querySelector('.thought').textContent") == "Let me think."
    page.until("document.querySelector('#rate').textContent === '0.0'")
    assert not page.errors and all(url.startswith((server, "data:")) for url in page.requests)


def test_stop_by_button_and_by_key(page, server) -> None:
    for stop in ("document.querySelector('#stop').click()", None):
        page.open(server)
        say(page, "Talk for ever")
        assert page.run("document.querySelector('#send').hidden")
        page.run(stop) if stop else page.key("Escape")
        page.until(IDLE)
        assert page.run(f"{LAST}.querySelector('.note').textContent") == "stopped"


def test_tools_are_shown_and_answered(page, server) -> None:
    page.open(server)
    page.run(f"document.querySelector('#tools').value = {str(TOOLS).replace(chr(39), chr(34))!r}")
    say(page, "Time?")
    page.until(IDLE)
    assert page.run(f"[...{LAST}.querySelectorAll('.call strong')].map(e => e.textContent)") == ["clock", "clock"]
    page.run(f"{LAST}.querySelectorAll('.call textarea').forEach(e => e.value = '12:00')")
    page.run(f"{LAST}.querySelector('.call button').click()")
    page.until(f"document.querySelectorAll('.answer').length === 2 && {IDLE}")
    assert page.run(f"{LAST}.querySelector('.text').textContent") == "It is noon."


def test_dark_mode_and_a_phones_width(page, server) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    page.open(server, dark=True)
    assert page.run(background) == "rgb(20, 23, 27)"
    page.run("document.querySelector('#theme').click()")
    assert page.run(background) == "rgb(255, 255, 255)"
    page.open(server, width=390)
    say(page, "w" * 300)
    page.until(IDLE)
    assert page.run("document.documentElement.scrollWidth") <= 390
    assert page.run("document.querySelector('#send').getBoundingClientRect().right") <= 390


def test_the_page_asks_for_a_key(page, tmp_path) -> None:
    (tmp_path / "keys.toml").write_text('[a]\nkey = "0123456789abcdef"\n')
    with serving(ScriptedEngine(script), keys=read_keys(tmp_path / "keys.toml")) as (url, _log):
        page.open(url)
        page.until("document.querySelector('#state').textContent === 'give the API key in Settings'")
        page.run("k = document.querySelector('#key'); k.value = '0123456789abcdef'; k.onchange()")
        say(page, "Hello")
        page.until(IDLE)
        assert "done" in page.run(f"{LAST}.textContent")
