"""The page in a browser: what it shows is what the service says.

The tests in a browser are skipped where playwright or Chromium is not installed.
"""

import asyncio
import json
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pyarrow as pa
import pytest
import uvicorn
from untrained import random_model, write_run

from recsys.retrieval.service.about import FILES, PAGE
from recsys.retrieval.service.app import application
from recsys.retrieval.service.config import ServiceConfig
from recsys.retrieval.service.service import Service

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
]
MARKUP = "<img src=x onerror=\"document.title='stolen'\"><b>bold</b> balm"
LARGE = 2**62 + 1
"""An id that a JavaScript number cannot hold."""
SLOW = """
window.late = 0;
const really = fetch;
window.fetch = async (path, { signal, ...request }) => {
  const answer = await really(path, request);
  if (request.body?.includes('"markup"]')) {
    await new Promise((done) => setTimeout(done, 300));
    window.late += 1;
  }
  return answer;
};
"""
"""Where histories that end with `markup` are answered late, and no question is called off."""
KEY = "reader-0123456789"


# A shop of two models, and one whose ids are numbers


def catalogue() -> pa.Table:
    kinds = ("cream", "hose", "lamp", "soap")
    ids = [f"{kind}-{number}" for kind in kinds for number in range(6)]
    titles = [f"shiny {name.replace('-', ' number')}" for name in ids]
    ids += ["markup", "17", 'a,b&c="d" %é', "untitled"]
    titles += [MARKUP, "text seventeen", "strange id", None]
    return pa.table({"item": ids, "title": titles, "count": list(range(1, len(ids) + 1))})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """`first` and `second`, which disagree, and `numbers`."""
    folder = tmp_path_factory.mktemp("page")
    numbered = pa.table({"item": [LARGE + n for n in range(5)], "count": [5, 4, 3, 2, 1]})
    made = []
    for seed, (name, items) in enumerate(
        {"first": catalogue(), "second": catalogue(), "numbers": numbered}.items()
    ):
        settings = {"dim": 8, "max_len": 5}
        model = random_model("sasrec", settings, items.num_rows, seed)
        made.append(write_run(folder / name, model, "sasrec", settings, items))
    return made


@contextmanager
def serving(runs: list[Path], **options: Any) -> Iterator[str]:
    """The address of a service in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        service = Service.open(runs, ServiceConfig(**options))
        server = uvicorn.Server(uvicorn.Config(application(service), log_config=None, ws="none"))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def address(runs: list[Path]) -> Iterator[str]:
    with serving(runs) as found:
        yield found


def said(address: str, path: str, body: dict | None = None) -> dict:
    """What the service answers when it is asked without a page."""
    data = None if body is None else json.dumps(body).encode()
    request = Request(address + path, data, {"content-type": "application/json"})
    with urlopen(request) as answer:
        return json.load(answer)


def recommended(address: str, *history: object, **more: object) -> dict:
    return said(address, "/recommend", {"history": history, "reasons": True, **more})


# The files


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_page_is_served_under_its_type_and_names_no_other_host(address, name):
    with urlopen(f"{address}/{'' if name == 'page.html' else name}") as answer:
        text = answer.read().decode()
        assert answer.headers.get_content_type() == FILES[name]
        assert answer.headers["content-security-policy"].startswith("default-src 'self'")
    assert text == (PAGE / name).read_text(encoding="utf-8")
    text = text.replace('xmlns="http://www.w3.org/2000/svg"', "")  # a name, not an address
    assert not re.search(r"https?://|[\"'(]//|@import", text)


def test_the_page_is_all_that_its_folder_holds_and_is_in_the_package():
    import tomllib

    assert {path.name for path in PAGE.iterdir()} == set(FILES)
    root = Path(__file__).parents[3]
    packaged = tomllib.loads((root / "pyproject.toml").read_text())
    patterns = packaged["tool"]["setuptools"]["package-data"]["recsys"]
    found = {path for pattern in patterns for path in (root / "recsys").glob(pattern)}
    assert {PAGE / name for name in FILES} <= found


def test_the_page_has_no_script_or_style_within_which_its_policy_would_forbid():
    html = (PAGE / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]* src=)", html)


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="the page is driven by playwright, which is not installed"
    )
    if CHROMIUM is None:
        pytest.skip("the page is driven in Chromium, which is not installed")
    with playwright.sync_playwright() as driver:
        # A launch makes itself a new user-data-dir.
        launched = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page; that it is faulty, or asks another host, fails the test in the end."""
    faults: list[str] = []
    contexts = []

    def visit(address: str, fragment: str = "", script: str = "", **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(5000)
        page.add_init_script(script)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if faulty(message) else None)
        page.on(
            "request",
            lambda request: None if request.url.startswith(address) else faults.append(request.url),
        )
        page.goto(f"{address}/{fragment}")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert faults == []


def faulty(message: Any) -> bool:
    """A browser notes each answer that is an error; the page itself says nothing."""
    return message.type in ("error", "warning") and "Failed to load resource" not in message.text


def shown(page: Any, place: str = "recommended") -> list[str]:
    """Ids in a list of the page, in order."""
    rows = page.locator(f"#{place} > li[data-id]")
    return rows.evaluate_all("rows => rows.map((row) => row.dataset.id)")


def wait_for(page: Any, ids: list, place: str = "recommended") -> None:
    """Until a list holds these ids in this order; otherwise a timeout fails the test."""
    page.wait_for_function(
        "([place, ids]) => JSON.stringify([...document.querySelectorAll(`#${place} > li[data-id]`)]"
        ".map((row) => row.dataset.id)) === JSON.stringify(ids)",
        arg=[place, [str(name) for name in ids]],
    )


def ids(answer: dict) -> list:
    return [item["item"] for item in answer["items"]]


def add(page: Any, name: str, place: str = "items") -> None:
    page.click(f"#{place} > li[data-id={json.dumps(name, ensure_ascii=False)}] .add")


def test_without_a_search_the_most_frequent_items_are_there_and_pages_lead_on(visit, address):
    page = visit(address)
    wait_for(page, ids(said(address, "/items?limit=10")), "items")
    assert page.text_content("#found") == "1–10 of 28 items, most frequent first"
    assert page.is_disabled("#previous")
    page.click("#next")
    wait_for(page, ids(said(address, "/items?limit=10&offset=10")), "items")
    page.click("#next")
    wait_for(page, ids(said(address, "/items?limit=10&offset=20")), "items")
    assert page.is_disabled("#next")
    page.click("#previous")
    wait_for(page, ids(said(address, "/items?limit=10&offset=10")), "items")


def test_a_search_finds_titles(visit, address):
    page = visit(address)
    page.fill("#search", "shiny LAMP")
    wait_for(page, [f"lamp-{n}" for n in range(5, -1, -1)], "items")
    assert page.text_content("#found") == "1–6 of 6 found"
    first = page.locator("#items > li").first
    assert first.locator(".title").text_content() == "shiny lamp number5"
    assert first.locator(".count").text_content() == "18×"
    page.fill("#search", "no such thing")
    wait_for(page, [], "items")
    assert page.text_content("#found") == "No item has all these words."


def test_a_click_adds_to_the_history_and_the_list_is_the_services(visit, address):
    page = visit(address)
    popular = recommended(address)
    wait_for(page, ids(popular))
    assert "the most popular items" in page.text_content("#said")
    add(page, "markup")
    wait_for(page, ["markup"], "history")
    first = ids(recommended(address, "markup"))
    wait_for(page, first)
    add(page, first[2], "recommended")
    wait_for(page, ["markup", first[2]], "history")
    answer = recommended(address, "markup", first[2])
    wait_for(page, ids(answer))
    rows = page.locator("#recommended > li")
    scores = rows.locator(".score").all_text_contents()
    assert [float(score) for score in scores] == pytest.approx(
        [item["score"] for item in answer["items"]], abs=6e-4
    )
    titles = [item["title"] or item["item"] for item in answer["items"]]
    assert rows.locator(".title").all_text_contents() == titles
    assert rows.locator(".reason").all_text_contents() == [
        f"because of {(b := item['because'])['title']}, +{b['gain']:.3f}"
        if item["because"]
        else "no single event stands out"
        for item in answer["items"]
    ]
    assert any(item["because"] for item in answer["items"])
    assert f"model {answer['model_version']} · catalogue 0" in page.text_content("#versions")
    assert re.search(r"10 items by first in \d+(\.\d)? ms", page.text_content("#said"))


def test_moves_compare_with_the_list_before(visit, address):
    page = visit(address, "#history=cream-1")
    before = ids(recommended(address, "cream-1"))
    wait_for(page, before)
    assert set(page.locator("#recommended .move").all_text_contents()) == {""}
    add(page, before[0], "recommended")
    after = ids(recommended(address, "cream-1", before[0]))
    wait_for(page, after)
    words = []
    for rank, name in enumerate(after):
        ups = before.index(name) - rank if name in before else None
        words.append("new" if ups is None else f"up {ups}" if ups > 0 else f"down {-ups}")
    words = ["" if word == "down 0" else word for word in words]
    assert page.locator("#recommended .move").all_text_contents() == words
    assert {"new"} < set(words)


def test_a_chip_is_removed_alone_and_clear_removes_all(visit, address):
    page = visit(address, "#history=cream-1,hose-1,cream-1")
    wait_for(page, ids(recommended(address, "cream-1", "hose-1", "cream-1")))
    page.wait_for_selector("#history > li:nth-child(2) .title:text-is('shiny hose number1')")
    page.get_by_role("button", name="Remove shiny cream number1").nth(0).click()
    wait_for(page, ["hose-1", "cream-1"], "history")
    wait_for(page, ids(recommended(address, "hose-1", "cream-1")))
    assert page.url.endswith("#history=hose-1,cream-1")
    page.click("#clear")
    wait_for(page, [], "history")
    wait_for(page, ids(recommended(address)))


def test_the_model_is_switched_for_the_list_and_the_catalogue(visit, address):
    page = visit(address, "#history=cream-1")
    first, second = (recommended(address, "cream-1", model=name) for name in ("first", "second"))
    assert ids(first) != ids(second)
    wait_for(page, ids(first))
    page.select_option("#model", "second")
    wait_for(page, ids(second))
    assert "by second" in page.text_content("#said")
    page.select_option("#model", "numbers")
    wait_for(page, ids(said(address, "/items?limit=10&model=numbers")), "items")
    page.wait_for_selector("#history .mark")
    assert page.text_content("#history .mark") == "unknown"
    assert "nothing of the history is known" in page.text_content("#said")


def test_conditions_are_asked_for(visit, address):
    page = visit(address, "#history=cream-1")
    page.fill("#k", "4")
    wait_for(page, ids(recommended(address, "cream-1", k=4)))
    page.fill("#diversity", "0.8")
    wait_for(page, ids(recommended(address, "cream-1", k=4, diversity=0.8)))
    page.select_option("#score", "probability")
    answer = recommended(address, "cream-1", k=4, diversity=0.8, score="probability")
    page.wait_for_selector("#recommended .score:has-text('%')")
    scores = page.locator("#recommended .score").all_text_contents()
    assert [float(score.rstrip("%")) for score in scores] == pytest.approx(
        [100 * item["score"] for item in answer["items"]], rel=6e-3
    )
    page.fill("#filters", "title like '%hose%' and count < 9")
    page.press("#filters", "Enter")
    filters = {"filters": "title like '%hose%' and count < 9"}
    answer = recommended(address, "cream-1", k=4, diversity=0.8, **filters)
    wait_for(page, ids(answer))
    assert answer["short"] in page.text_content("#said")


def test_a_fault_in_the_filters_is_said_beside_them(visit, address):
    page = visit(address, "#history=cream-1")
    wait_for(page, ids(recommended(address, "cream-1")))
    page.fill("#filters", "prise < 3")
    page.press("#filters", "Enter")
    page.wait_for_selector("#filters[aria-invalid=true]")
    assert page.text_content("#filters-error").startswith("no column 'prise' for the filter")
    assert page.is_hidden("#alert")
    page.fill("#filters", "")
    page.press("#filters", "Enter")
    page.wait_for_selector("#filters[aria-invalid=false]")
    assert page.text_content("#filters-error") == ""


def test_the_address_keeps_history_and_conditions(visit, address):
    strange = ['a,b&c="d" %é', "17", "markup"]
    page = visit(address)
    for name in strange:
        add(page, name)
    page.select_option("#model", "second")
    page.fill("#k", "3")
    wanted = ids(recommended(address, *strange, model="second", k=3))
    wait_for(page, wanted)
    other = visit(address, page.url.removeprefix(f"{address}/"))
    wait_for(other, strange, "history")
    wait_for(other, wanted)
    other.wait_for_selector("#history .title:text-is('strange id')")
    assert other.locator("#history .title").all_text_contents()[2] == MARKUP
    page.go_back()
    wait_for(page, strange[:2], "history")


def test_ids_that_are_numbers_lose_no_digit(visit, address):
    page = visit(address, f"#history={LARGE + 1}&model=numbers")
    answer = recommended(address, LARGE + 1, model="numbers")
    assert answer["unknown"] == []
    wait_for(page, ids(answer))
    add(page, str(LARGE), "items")
    wait_for(page, [LARGE + 1, LARGE], "history")
    wait_for(page, ids(recommended(address, LARGE + 1, LARGE, model="numbers")))
    page.locator("#recommended .like").first.click()
    first = shown(page)[0]
    similar = said(address, f"/similar?item={first}&model=numbers")
    wait_for(page, ids(similar), "similar-items")


def test_titles_stay_text(visit, address):
    page = visit(address)
    page.fill("#search", "onerror")
    wait_for(page, ["markup"], "items")
    add(page, "markup")
    wait_for(page, ["markup"], "history")
    for place in ("#items", "#history"):
        assert page.locator(f"{place} .title").text_content() == MARKUP
    page.wait_for_selector("#recommended .cause")
    assert page.locator("#recommended .cause").first.text_content() == MARKUP
    page.click("#items .like")
    page.wait_for_selector("#similar-items > li")
    assert page.text_content("#similar-title") == f"Similar to {MARKUP}"
    assert page.locator("img, b").count() == 0
    assert page.title() == "recsys"


def test_similar_items_are_shown_and_can_be_added(visit, address):
    page = visit(address)
    page.click("#items > li[data-id='untitled'] .like")
    similar = ids(said(address, "/similar?item=untitled&k=10"))
    wait_for(page, similar, "similar-items")
    add(page, similar[1], "similar-items")
    wait_for(page, [similar[1]], "history")
    assert page.locator("dialog[open]").count() == 0


def test_an_item_out_of_stock_is_marked(visit, runs):
    with serving(runs[:1]) as address:
        said(address, "/items/availability", {"ids": ["lamp-2"], "available": False})
        page = visit(address)
        page.fill("#search", "lamp")
        page.wait_for_selector("#items .mark")
        marks = page.locator("#items > li", has=page.locator(".mark"))
        assert marks.evaluate_all("rows => rows.map((row) => row.dataset.id)") == ["lamp-2"]
        assert marks.locator(".mark").text_content() == "unavailable"


def test_an_answer_is_not_overtaken_by_an_earlier_one(visit, address):
    page = visit(address, "#history=cream-1", script=SLOW)
    wait_for(page, ids(recommended(address, "cream-1")))
    add(page, "markup")
    add(page, "untitled")
    wanted = ids(recommended(address, "cream-1", "markup", "untitled"))
    wait_for(page, wanted)
    page.wait_for_function("() => window.late === 1")
    page.wait_for_timeout(50)
    assert shown(page) == wanted


def test_a_key_is_asked_for_and_kept_for_the_tab_alone(visit, runs, tmp_path: Path):
    path = tmp_path / "keys.toml"
    path.write_text(f'read = ["{KEY}"]\n')
    with serving(runs[:1], keys=path) as address:
        page = visit(address, "#history=cream-1")
        page.wait_for_selector("#key:focus")
        page.fill("#key", "reader-of-another")
        page.press("#key", "Enter")
        page.wait_for_selector("#key-note:has-text('does not know that key')")
        page.fill("#key", KEY)
        page.press("#key", "Enter")
        page.wait_for_selector("#recommended > li")
        assert page.is_hidden("#key-form")
        assert KEY not in page.url
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        page.reload()
        page.wait_for_selector("#recommended > li")
        assert page.is_hidden("#key-form")


def test_a_service_that_is_gone_is_said_and_the_list_stays(visit, runs):
    with serving(runs[:1]) as address:
        page = visit(address, "#history=cream-1")
        page.wait_for_selector("#recommended > li")
        before = shown(page)
    add(page, "markup")
    page.wait_for_selector("#alert:visible")
    assert page.text_content("#alert-text") == "The service cannot be reached."
    assert page.text_content("#said") == "Below is the list before."
    assert shown(page) == before
    page.route("**/recommend", lambda route: route.fulfill(status=503, json={"error": "stopping"}))
    page.click("#again")
    page.wait_for_selector("#alert-text:has-text('stopping')")


def test_the_keyboard_alone_adds_and_stays_in_its_place(visit, address):
    page = visit(address, "#history=cream-1")
    before = ids(recommended(address, "cream-1"))
    wait_for(page, before)
    page.locator("#recommended .add").nth(3).focus()
    page.keyboard.press("Enter")
    wait_for(page, ids(recommended(address, "cream-1", before[3])))
    place = "[...document.querySelectorAll('#recommended .add')].indexOf(document.activeElement)"
    assert page.evaluate(place) == 3
    page.get_by_role("button", name="Remove shiny cream number1").focus()
    page.keyboard.press("Enter")
    wait_for(page, [before[3]], "history")
    assert page.evaluate("document.activeElement.className") == "remove"


def test_every_control_has_a_name_for_a_screen_reader(visit, address):
    page = visit(address, "#history=cream-1")
    page.wait_for_selector("#recommended > li")
    page.click("#items .like")
    page.wait_for_selector("#similar-items > li")
    nameless = page.evaluate(
        "[...document.querySelectorAll('button, input, select')].filter((one) =>"
        " !(one.labels?.length || one.ariaLabel || one.textContent.trim())).map((one) => one.id)"
    )
    assert nameless == []
    alone = page.locator("#similar-items .add").first
    assert alone.text_content().endswith(", add to the history")


@pytest.mark.parametrize("width", [360, 1600])
def test_a_page_is_as_wide_as_the_window(visit, address, width):
    size = {"width": width, "height": 800}
    page = visit(address, "#history=cream-1,markup,hose-1,lamp-1", viewport=size)
    page.wait_for_selector("#recommended > li")
    assert page.evaluate("document.documentElement.scrollWidth") == width
