"""The page in a real browser: an image goes in three ways, the answer streams, the thought is folded, errors show."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import chromium
import pytest
from serve_tiny import ALPHABET, ANSWER, COLOUR, LETTERS, THOUGHT, Served, picture

from sail_train.serve import handler

STATIC = handler.STATIC


@pytest.fixture(scope="module")
def browser() -> Iterator[chromium.Chromium]:
    path = chromium.find()
    if path is None:
        pytest.skip(f"no Chromium here: none of {', '.join(chromium.NAMES)} is on the path")
    with chromium.Chromium(path) as opened:
        yield opened


@pytest.fixture
def page(browser: chromium.Chromium, serve: Callable[..., Served]) -> Iterator[tuple[chromium.Chromium, Served]]:
    """The page of a server of the test's own, just opened."""
    served = serve(max_images=3)
    browser.look(1000, 700)
    browser.console.clear()
    browser.open(served.url)
    browser.until("document.title.startsWith('speaker')")
    yield browser, served
    browser.open("about:blank")


def give(browser: chromium.Chromium, event: str, target: str, data: bytes, *, kind: str = "image/png") -> None:
    """A file by paste or drop, as the browser's own event."""
    encoded = json.dumps(base64.b64encode(data).decode())
    transfer = {"paste": "clipboardData", "drop": "dataTransfer"}[event]
    made = {"paste": "ClipboardEvent", "drop": "DragEvent"}[event]
    browser.run(
        f"""(() => {{
        const data = new DataTransfer();
        const bytes = Uint8Array.from(atob({encoded}), (c) => c.charCodeAt(0));
        data.items.add(new File([bytes], "a picture.png", {{type: "{kind}"}}));
        const event = new {made}("{event}", {{{transfer}: data, bubbles: true, cancelable: true}});
        document.querySelector("{target}").dispatchEvent(event);
        }})()"""
    )


def think(browser: chromium.Chromium, mode: str) -> None:
    browser.click(f"#think label:has(input[value={mode}])")
    assert browser.run("document.querySelector('#ask').elements.think.value") == mode


def ended(browser: chromium.Chromium, count: int = 1) -> None:
    browser.until(f"document.querySelectorAll('.note').length == {count}")


def last(browser: chromium.Chromium, selector: str) -> str:
    return browser.run(f"[...document.querySelectorAll('{selector}')].at(-1).textContent")


def test_a_chosen_image_is_asked_about_and_the_thought_is_folded(
    page: tuple[chromium.Chromium, Served], tmp_path: Path
) -> None:
    browser, served = page
    served.slow(0.03)
    file = tmp_path / "red.png"
    file.write_bytes(picture())
    browser.choose_file("#file", file)
    browser.until("document.querySelector('#pictures img')")
    think(browser, "on")
    browser.type("#question", COLOUR)
    browser.press("Enter")
    browser.until("document.querySelector('.thought summary')?.textContent == 'Thinking\\u2026'")
    assert browser.run("document.querySelector('#send').textContent") == "Stop"
    half = browser.until("document.querySelector('.answer').textContent")
    assert len(half) < len(ANSWER), "the answer is shown as it is written"
    ended(browser)
    assert last(browser, ".answer") == ANSWER and last(browser, ".thought .text") == THOUGHT
    assert re.fullmatch(r"Thought for [\d.]+ s", last(browser, ".thought summary"))
    assert browser.run("document.querySelector('.thought').open") is False
    assert browser.run("document.querySelector('.thought .text').checkVisibility()") is False
    browser.click(".thought summary")
    browser.until("document.querySelector('.thought .text').checkVisibility()")
    assert browser.run("document.querySelector('.user img').naturalWidth") == 56
    assert browser.run("document.querySelector('#welcome').hidden") is True and browser.console == []


def test_a_direct_answer_shows_no_thought_and_no_blank(page: tuple[chromium.Chromium, Served]) -> None:
    browser, _ = page
    give(browser, "paste", "#question", picture())
    browser.until("document.querySelector('#pictures img')")
    think(browser, "off")
    browser.type("#question", COLOUR)
    browser.click("#send")
    ended(browser)
    assert last(browser, ".answer") == ANSWER
    assert browser.run("document.querySelector('.thought')") is None and browser.console == []


def test_a_dropped_image_can_be_taken_away_and_a_conversation_goes_on(page: tuple[chromium.Chromium, Served]) -> None:
    browser, served = page
    asked: list[dict] = []
    ask = served.service.ask
    served.service.ask = lambda data: asked.append(json.loads(data)) or ask(data)  # type: ignore[method-assign, func-returns-value]
    for _ in range(2):
        give(browser, "drop", "#talk", picture())
    browser.until("document.querySelectorAll('#pictures img').length == 2")
    browser.click("#pictures button")
    browser.until("document.querySelectorAll('#pictures img').length == 1")
    think(browser, "on")
    browser.type("#question", COLOUR)
    browser.press("Enter")
    ended(browser)
    think(browser, "auto")
    browser.type("#question", ALPHABET)
    browser.press("Enter")
    ended(browser, 2)
    first, second = asked
    assert [part["type"] for part in first["messages"][0]["content"]] == ["image_url", "text"]
    assert (first["think"], second["think"], second["temperature"]) == ("on", "auto", 0)
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "user"]
    assert second["messages"][1]["content"] == ANSWER, "a thought is not sent back"
    browser.click("#new")
    browser.until("!document.querySelector('.user') && !document.querySelector('#welcome').hidden")
    browser.type("#question", ALPHABET)
    browser.press("Enter")
    ended(browser)
    assert len(asked[2]["messages"]) == 1 and last(browser, ".answer") == LETTERS


def test_an_answer_can_be_stopped_and_frees_its_row(page: tuple[chromium.Chromium, Served]) -> None:
    browser, served = page
    served.slow(0.2)
    browser.type("#question", ALPHABET)
    browser.press("Enter")
    browser.until("document.querySelector('.answer')?.textContent.length > 2")
    browser.click("#send")
    browser.until("document.querySelector('.note')?.textContent == 'Stopped'")
    served.until(lambda health: health["active"] == 0, seconds=3)
    assert browser.run("document.querySelector('#send').textContent") == "Ask"


def test_what_a_model_says_is_text_and_never_markup(page: tuple[chromium.Chromium, Served]) -> None:
    browser, served = page
    evil = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script><b>bold</b>"
    served.service.processor.decode = lambda ids, *_, **__: evil[: len(ids)]  # type: ignore[method-assign]
    browser.type("#question", ALPHABET)
    browser.press("Enter")
    ended(browser)
    assert browser.run("document.querySelector('.answer').childElementCount") == 0
    assert last(browser, ".answer").startswith("<img src") and browser.run("document.title").startswith("speaker")


def test_errors_are_shown_and_a_question_can_be_asked_again(page: tuple[chromium.Chromium, Served]) -> None:
    browser, served = page
    give(browser, "drop", "#talk", b"nothing")
    browser.until("document.querySelector('#pictures img')")
    browser.type("#question", COLOUR)
    browser.press("Enter")
    assert "image_unreadable" in browser.until("document.querySelector('.error')?.textContent")
    browser.click("#new")
    give(browser, "drop", "#talk", b"text", kind="text/plain")
    assert "is no PNG, JPEG or WebP image" in browser.until("document.querySelector('.error')?.textContent")
    browser.click("#new")
    for _ in range(4):
        give(browser, "drop", "#talk", picture())
    assert "at most 3 images" in browser.until("document.querySelector('.error')?.textContent")
    browser.click("#new")
    queue, served.service.worker.queue = served.service.worker.queue, 0
    browser.type("#question", ALPHABET)
    browser.press("Enter")
    assert "waiting already" in browser.until("document.querySelector('.error')?.textContent")
    served.service.worker.queue = queue
    browser.click(".error button")
    ended(browser)
    assert last(browser, ".answer") == LETTERS and browser.run("document.querySelector('.error')") is None
    assert browser.run("document.querySelectorAll('.user').length") == 1


def test_a_server_that_is_gone_is_told(page: tuple[chromium.Chromium, Served]) -> None:
    browser, served = page
    served.service.worker.stop()
    browser.type("#question", ALPHABET)
    browser.press("Enter")
    assert "stops" in browser.until("document.querySelector('.error')?.textContent")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [320, 390, 1200])
def test_it_fits_the_window_and_can_be_read(
    page: tuple[chromium.Chromium, Served], width: int, dark: bool, tmp_path: Path
) -> None:
    browser, _ = page
    browser.look(width, 700, dark=dark)
    give(browser, "drop", "#talk", picture(200))
    browser.until("document.querySelector('#pictures img')")
    browser.type("#question", "x" * 150)
    browser.press("Enter")
    ended(browser)
    browser.click("#settings summary")
    browser.until("document.querySelector('#settings').open")
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    outside = """[...document.querySelectorAll('button, textarea, .panel, .panel *, .user, .user img, fieldset label')]
        .filter((node) => { const box = node.getBoundingClientRect();
                            return box.width && (box.left < 0 || box.right > innerWidth); })
        .map((node) => node.outerHTML.slice(0, 60))"""
    assert browser.run(outside) == []
    assert browser.run(CONTRAST) > 4.5
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 5000


CONTRAST = """(() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3)
      .map((v) => v / 255).map((v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if (colour != "rgba(0, 0, 0, 0)") return colour;
    }
  };
  const nodes = ["h1", ".user .text", ".answer", ".note", "#think span", "#think legend", "#new", ".panel p"];
  return Math.min(...nodes.map((selector) => {
    const node = document.querySelector(selector);
    const [a, b] = [light(getComputedStyle(node).color), light(ground(node))].sort();
    return (b + .05) / (a + .05);
  }));
})()"""
"""The least contrast (WCAG 2) of the page's texts to what is behind them."""


def test_nothing_comes_from_elsewhere() -> None:
    for name in ("index.html", "style.css", "page.js"):
        text = (STATIC / name).read_text()
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), f"{name} names another server"
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text)
    assert " style=" not in (STATIC / "index.html").read_text(), "the policy allows no style in the page"
    assert not re.search(r"\son[a-z]+=", (STATIC / "index.html").read_text()), "nor a script"
    assert {path.name for path in STATIC.iterdir()} == {name for name, _ in handler.PAGES.values()}


def test_the_page_and_its_parts_are_served(served: Served) -> None:
    for path, (name, kind) in handler.PAGES.items():
        reply = served.client.get(path)
        assert reply.status_code == 200 and reply.headers["content-type"] == kind
        assert reply.content == (STATIC / name).read_bytes()
    started = time.monotonic()
    assert served.client.get("/?x=1").status_code == 200 and time.monotonic() - started < 5
