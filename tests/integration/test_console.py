"""`haypile console` in Chromium, on a real broker and a real Redis whose prompts went through a real worker."""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from deploy.tail import Tail
from tests.support.chromium import Watched, running_chromium
from tests.support.console import HOSTILE, HOSTILE_ID, HOSTILE_RUN, RUN, USER, adapters, feed, settings_of, train
from tests.support.stack import Process, Topics, wait_for
from trainers.registry import Registry

TOKEN = "a token for the tests"
PROMPTS = 40
CAPACITY = 30
PAGES = ("/", "/buffer", "/training", "/models", "/dead-letters", "/prompt?id=hostile")
WAIT_MS = 30_000


@dataclass
class Console:
    """The process and what it shows."""

    url: str
    process: Process
    topics: Topics
    vllm: str
    registry: Registry
    versions: list[str]

    def adapters(self) -> list[str]:
        """Adapters that the server has."""
        with urllib.request.urlopen(f"{self.vllm}/v1/models") as answer:
            return [model["id"] for model in json.load(answer)["data"] if model["id"].startswith("haypile-")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_chromium() as found:
        yield found


@pytest.fixture(scope="module")
def console(
    browser: Browser, bootstrap: str, judge: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Console]:
    folder = tmp_path_factory.mktemp("console")
    topics = Topics(bootstrap, "console.")
    environ = {
        **topics.environ(),
        "HAYPILE_REDIS__URL": redis_url,
        "HAYPILE_REDIS__NAMESPACE": "console-test",
        "HAYPILE_JUDGE__URLS": json.dumps([judge]),
        "HAYPILE_BUFFER__CAPACITY": str(CAPACITY),
        "HAYPILE_BUFFER__CATEGORY_SHARE": "1",
        "HAYPILE_INGEST__EVAL_SHARE": "0",
        **settings_of(folder, judge, TOKEN),
    }
    versions = adapters(folder)
    train(topics, folder)
    feed(topics, folder, environ, PROMPTS)
    process = Process(["-m", "deploy.cli", "console"], folder / "console.log", environ)
    try:
        found = wait_for("its address", lambda: re.search(r"console on (http\S+)", process.text()))
        yield Console(found[1], process, topics, judge, Registry(folder / "registry"), versions)
        assert process.terminate(20) == 0, process.text()
        assert "Traceback" not in process.text(), process.text()
    finally:
        process.kill()


def new_context(browser: Browser, console: Console) -> BrowserContext:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, base_url=console.url)
    context.set_default_timeout(WAIT_MS)
    expect.set_options(timeout=WAIT_MS)
    return context


@pytest.fixture(scope="module")
def reader(browser: Browser, console: Console) -> Iterator[BrowserContext]:
    """Nobody logs in here. One for all, because its cache saves seconds."""
    context = new_context(browser, console)
    yield context
    context.close()


@pytest.fixture(scope="module")
def operator(browser: Browser, console: Console) -> Iterator[BrowserContext]:
    """Logged in."""
    context = new_context(browser, console)
    log_in(context)
    yield context
    context.close()


@pytest.fixture
def anybody(browser: Browser, console: Console) -> Iterator[BrowserContext]:
    """With cookies of its own."""
    context = new_context(browser, console)
    yield context
    context.close()


def open_page(context: BrowserContext, path: str, shows: str) -> tuple[Page, Watched]:
    """The page once it shows a text."""
    page = context.new_page()
    watched = Watched(page)
    page.goto(path)
    expect(page.locator(".hp-page, .hp-login-page")).to_contain_text(shows)
    return page, watched


def log_in(context: BrowserContext) -> None:
    page = context.new_page()
    page.goto("/login")
    page.fill("#token", TOKEN)
    page.click("button")
    expect(page.locator(".hp-who")).to_contain_text("log out")
    page.close()


SHOWS = {
    "/": f"of {CAPACITY}",
    "/buffer": f"1 to 25 of {CAPACITY}",
    "/training": "in the way",
    "/models": "13 wins, 4 ties, 7 losses",
    "/dead-letters": "not_json",
    "/prompt?id=hostile": "What the judge said",
}


def test_every_page_shows_what_there_is_and_nothing_runs_leaks_or_comes_from_elsewhere(
    console: Console, reader: BrowserContext
) -> None:
    host = console.url.partition("://")[2]
    for path in PAGES:
        page, watched = open_page(reader, path, SHOWS[path])
        text = page.locator("body").inner_text()
        assert USER not in page.content()
        assert not page.evaluate("window.hostile"), f"{path} ran what a user wrote"
        assert page.locator(".hp-page :is(img, script, b)").count() == 0
        assert (watched.errors, watched.hosts) == ([], {host}), path
        for button in ("Promote", "Roll back", "Replay"):
            assert button not in text, f"{path} is read-only"
        page.close()


def test_what_users_wrote_is_shown_as_they_wrote_it(operator: BrowserContext) -> None:
    page, _ = open_page(operator, "/prompt?id=hostile", "What the judge said")
    assert page.locator(".hp-text").first.inner_text().startswith(HOSTILE)
    expect(page.locator(".hp-page, .hp-login-page")).to_contain_text(re.compile(r"user [0-9a-f]{8}"))
    page.close()
    page, watched = open_page(operator, "/models", "The gate's report")
    with operator.expect_page() as opened:
        page.get_by_text("The gate's report").first.click()
    expect(opened.value.locator("p")).to_have_text(re.compile(r"v000\d-"))
    assert opened.value.title() != "ran" and opened.value.locator("script").count() == 2, "it has scripts, and none ran"
    opened.value.close()
    page.close()
    page, more = open_page(operator, "/dead-letters", '"user_id": "(hidden)"')
    text = page.locator(".hp-page, .hp-login-page").inner_text()
    assert "[EMAIL]" in text and USER not in text
    assert not page.evaluate("window.hostile")
    assert watched.errors + more.errors == []
    page.close()


def test_the_page_moves_without_a_reload(console: Console, reader: BrowserContext) -> None:
    page, _ = open_page(reader, "/", f"of {CAPACITY}")
    first = page.locator(".hp-kpi .s").first

    def sent() -> int:
        return int(re.sub(r"\D", "", first.inner_text()) or 0)

    wait_for("the count", sent, 20)
    before = sent()
    console.topics.send([b'{"prompt": "one more"}'] * 8)
    console.topics.send([b'{"prompt": "and another one"}'] * 8)  # Tansu's end is short by the last batch
    wait_for("the new records", lambda: sent() >= before + 8, 20)
    page.close()


def test_a_member_is_found_and_leads_to_its_story(reader: BrowserContext) -> None:
    page, _ = open_page(reader, "/buffer", f"of {CAPACITY}")
    page.get_by_label("Search").fill("strange id")
    page.get_by_role("button", name="Search").click()
    found = page.locator("a.hp-row.member")
    members = page.locator(".hp-actions")
    expect(members).to_contain_text(re.compile(r"[01] to [01] of [01]$"))
    if found.count():  # by its hash it may have been refused
        found.first.click()
        expect(page.locator(".hp-page, .hp-login-page")).to_contain_text("What the judge said")
        assert page.locator(".hp-mono").first.inner_text() == HOSTILE_ID
        assert not page.evaluate("window.hostile")
    page.goto("/buffer")
    expect(members).to_contain_text(f"of {CAPACITY}")
    page.get_by_role("button", name="Softer").click()
    expect(members).to_contain_text(f"26 to {CAPACITY} of {CAPACITY}")
    places = [int(place) for place in page.locator("a.hp-row.member > :first-child").all_inner_texts()]
    assert places == list(range(26, CAPACITY + 1))
    page.close()


def test_runs_have_their_curves_and_the_decision_its_reasons(reader: BrowserContext) -> None:
    page, watched = open_page(reader, "/training", "Would not train: no reason holds")
    main = page.locator(".hp-page, .hp-login-page")
    expect(main).to_contain_text(RUN)
    expect(main).to_contain_text(f"{CAPACITY} are in the buffer (at least 5,000)")
    expect(main).to_contain_text("no run in progress")
    drawn = page.locator(".hp-chart svg path")
    wait_for("the curves", lambda: drawn.count() > 10, 20)
    page.get_by_text(HOSTILE_RUN).first.click()
    expect(main).to_contain_text("No point of a curve is known yet")
    assert not page.evaluate("window.hostile")
    assert watched.errors == []
    page.close()


def test_a_wrong_token_opens_nothing_and_the_right_one_until_the_log_out(
    console: Console, anybody: BrowserContext
) -> None:
    page = anybody.new_page()
    page.goto("/login")
    page.fill("#token", "a token for the text")
    page.click("button")
    expect(page.locator(".hp-page, .hp-login-page")).to_contain_text("That is not the token")
    assert anybody.cookies() == []
    log_in(anybody)
    [cookie] = anybody.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")

    stale, _ = open_page(anybody, "/models", "serves")
    page.goto("/models")
    page.get_by_role("button", name="log out").click()
    expect(page.locator(".hp-who")).to_contain_text("read-only")
    stale.get_by_role("button", name="Promote …").click()
    stale.get_by_label("Why? It is kept in the history.").fill("I am still here")
    stale.get_by_role("button", name="Promote", exact=True).click()
    expect(stale.locator("body")).to_contain_text("The login has ended")
    assert console.registry.champion().version == console.versions[0]
    assert len(console.registry.champion().history) == 1


def test_promote_and_rollback_ask_why_and_reach_the_servers(console: Console, operator: BrowserContext) -> None:
    page, _ = open_page(operator, "/models", "serves")
    page.get_by_role("button", name="Promote …").click()
    page.get_by_role("button", name="Promote", exact=True).click()
    expect(page.locator("body")).to_contain_text("Say why")
    page.get_by_label("Why? It is kept in the history.").fill("the gate was <b>too</b> strict")
    page.get_by_role("button", name="Promote", exact=True).click()
    wait_for("the promotion", lambda: console.registry.champion().version == console.versions[1], 30)
    change = console.registry.champion().history[-1]
    assert (change.kind, change.reason, change.by) == ("promote", "the gate was <b>too</b> strict", "console")
    assert console.adapters() == [f"haypile-{console.versions[1]}"]
    expect(page.locator(".hp-page, .hp-login-page")).to_contain_text("the gate was <b>too</b> strict")

    page.get_by_role("button", name="Roll back …").click()
    page.get_by_label("Why? It is kept in the history.").fill("it was not")
    page.get_by_role("button", name="Roll back", exact=True).click()
    wait_for("the rollback", lambda: console.registry.champion().version == console.versions[0], 30)
    assert console.adapters() == [f"haypile-{console.versions[0]}"]


def test_a_run_is_asked_for_and_training_paused_and_resumed(operator: BrowserContext) -> None:
    page, _ = open_page(operator, "/training", "no reason holds")
    shown = page.locator(".hp-page")
    for name, why, shows in (
        ("Train now", "a <b>new</b> judge", "a <b>new</b> judge"),
        ("Pause", "a release", "paused: a release"),
        ("Resume", "it is out", "not paused"),
    ):
        page.get_by_role("button", name=f"{name} …").click()
        page.get_by_label("Why? It is kept in the history.").fill(why)
        page.get_by_role("button", name=name, exact=True).click()
        expect(shown).to_contain_text(shows)
    expect(shown).to_contain_text("does not count")
    page.close()


def test_replay_sends_dead_letters_back(console: Console, operator: BrowserContext) -> None:
    before = len(console.topics.read(console.topics.names.raw))
    page, _ = open_page(operator, "/dead-letters", "wrong_type")
    card = page.locator("section", has=page.get_by_role("heading", name="wrong_type"))
    card.get_by_role("button", name="Replay …").click()
    page.get_by_role("button", name="Send back").click()
    expect(page.locator("body")).to_contain_text("1 sent back, 0 failed")
    raw = console.topics.read(console.topics.names.raw)
    assert len(raw) == before + 1
    assert sum(json.loads(value).get("id") == "bad" for _, _, value in raw if value.endswith(b"}")) == 2


def test_on_a_phone_nothing_scrolls_sideways(browser: Browser, console: Console) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, base_url=console.url, has_touch=True)
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    for path in (*PAGES, "/login"):
        page.goto(path)
        expect(page.locator(".hp-page, .hp-login-page")).to_contain_text(SHOWS.get(path, "Token"))
        widths = page.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth, innerWidth]")
        assert widths == [390, 390, 390], path
        wide = page.evaluate(
            "[...document.querySelectorAll('.hp-page *')].filter(e => e.getBoundingClientRect().right > 391)"
            ".map(e => e.className + ' ' + e.textContent.slice(0, 40))"
        )
        assert wide == [], path
    context.close()


def request(url: str, **headers: str) -> tuple[int, dict[str, str]]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
            return answer.status, {name.lower(): value for name, value in answer.headers.items()}
    except urllib.error.HTTPError as error:
        return error.code, {name.lower(): value for name, value in error.headers.items()}


def test_other_sites_are_kept_out(console: Console) -> None:
    status, headers = request(console.url)
    assert status == 200
    assert headers["x-frame-options"] == "DENY"
    assert "default-src 'self'" in headers["content-security-policy"]
    assert request(f"{console.url}/gate/..%2f..%2fchampion.json")[0] == 404
    assert request(console.url, Host="evil.example")[0] == 400
    assert request(f"{console.url}/healthz", Host="10.1.2.3:8200")[0] == 200, "a probe asks by address"
    socket = f"{console.url}/_nicegui_ws/socket.io/?EIO=4&transport=polling"
    assert request(socket, Origin="http://evil.example")[0] == 400
    assert request(socket, Origin=console.url)[0] == 200


def test_a_tail_begins_near_the_end_and_passes_over_a_flood(topics: Topics) -> None:
    def of(first: int, last: int) -> list[bytes]:
        return [b"%04d" % number for number in range(first, last)]

    def come(count: int) -> list[bytes]:
        """So many, however many looks that takes on a busy machine; nothing is passed over."""
        found: list[bytes] = []

        def enough() -> bool:
            messages, skipped = tail.come(1_000)
            assert skipped == 0
            found.extend(message.value for message in messages)
            return len(found) >= count

        wait_for(f"{count} records", enough, 30)
        return found

    topics.send(of(0, 50), partition=0)
    tail = Tail(topics.kafka, [topics.names.raw], last=10)
    try:
        first = come(10)
        assert first == of(50 - len(first), 50) and len(first) <= 50
        topics.send(of(50, 55), partition=1)
        assert come(5) == of(50, 55)
        flood = 3_000  # one poll of kafka-python brings 500 at most: the first look cannot see all of it
        for start in range(100, 100 + flood, 100):
            topics.send(of(start, start + 100), partition=0)
        found, skipped = wait_for("the flood", lambda: (now := tail.come(1))[0] and now, 30)
        rest = come(flood - len(found) - skipped)
        # From 10 before the end, or before what Tansu takes for it: it is short by the last batch.
        assert len(found) + skipped + len(rest) == flood
        assert rest == of(100 + flood - len(rest), 100 + flood) and len(rest) <= 110 and skipped > 0
    finally:
        tail.close()


def test_without_kafka_redis_and_token_it_says_so(browser: Browser, tmp_path: Path) -> None:
    environ: dict[str, Any] = {
        "HAYPILE_KAFKA__BOOTSTRAP": "127.0.0.1:1",
        "HAYPILE_REDIS__URL": "redis://:secret@127.0.0.1:1/0",
        "HAYPILE_CONSOLE__PORT": "0",
        "HAYPILE_TRAINING__REGISTRY": str(tmp_path / "registry"),
    }
    process = Process(["-m", "deploy.cli", "console"], tmp_path / "console.log", environ)
    context = browser.new_context()
    try:
        url = wait_for("its address", lambda: re.search(r"console on (http\S+)", process.text()))[1]
        page = context.new_page()
        page.goto(url)
        expect(page.locator(".hp-page, .hp-login-page")).to_contain_text(
            "Kafka: Kafka at 127.0.0.1:1 is not reachable", timeout=WAIT_MS
        )
        expect(page.locator(".hp-page, .hp-login-page")).to_contain_text("Redis: Redis at 127.0.0.1:1", timeout=WAIT_MS)
        assert "secret" not in page.content()
        page.goto(f"{url}/login")
        expect(page.locator(".hp-page, .hp-login-page")).to_contain_text("HAYPILE_CONSOLE__TOKEN")
        assert page.locator("input").count() == 0
        assert process.terminate(20) == 0
    finally:
        context.close()
        process.kill()
