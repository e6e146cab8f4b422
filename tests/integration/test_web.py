"""The page: what it lets in, tells and does, whoever wrote what is in it and whatever happens.

With PGEMBED_SCREENSHOTS set to docs/web, the pictures of the documents are drawn anew.
"""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.lifecycle.drop import drop_pipeline
from pgqueue_embed.local_server import LocalServer
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.web import live as live_module
from pgqueue_embed.web import make_site
from pgqueue_embed.web.rights import VIEWS
from pgqueue_embed.web.site import url
from pgqueue_embed.web_server.api_key import ApiKey
from tests.conftest import CLONE, Administrator, _temporary_database, database_conninfo
from tests.support.conditions import wait_until
from tests.support.pipelines import make_pipeline
from tests.support.programs import needs_program
from tests.support.serving_pages import (
    DESKTOP,
    DRAWN,
    PAGES,
    PHONE,
    PICTURES,
    Watched,
    World,
    chromium,
    draw_pages,
    events,
    form,
    served_world,
    serving,
)
from tests.support.watching import ODD_NAME, commit_some
from tests.unit.test_foreign_text import is_hostile

if TYPE_CHECKING:
    from playwright.sync_api import Browser

KEY = "0123456789abcdef0123"
MOST_BYTES = 150_000


@pytest.fixture(scope="module")
def world(server: LocalServer, administrator: Administrator, template: str) -> Iterator[World]:
    with (
        _temporary_database(administrator, CLONE, template) as name,
        served_world(database_conninfo(server, name)) as served,
    ):
        yield served


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def connection(world: World) -> Iterator[Connection]:
    with connect(world.conninfo) as session:
        yield session


def test_pages_show_what_others_wrote_and_do_nothing_of_it(world: World) -> None:
    password = str(conninfo_to_dict(world.conninfo)["password"])
    for page in PAGES:
        answer = world.acting.get(page)
        assert answer.status_code in (200, 400, 404), page
        text = answer.text
        assert not re.search(r"<script>document|<img src=x|<b>2026", text), page
        assert [each for each in text if is_hostile(each) and each not in "\n\t\r"] == [], page
        assert len(text) < MOST_BYTES, page
        assert password not in text
        assert "'unsafe-inline'" not in answer.headers["content-security-policy"]
        assert not re.search(r'\sstyle=|\son\w+="|javascript:', text), page
    hits = world.acting.get(PAGES[10]).text
    assert "<mark>&lt;script&gt;document.title=" in hits
    assert "needle in a haystack" in hits


def test_a_search_shows_chunks_in_their_documents_page_by_page(world: World) -> None:
    seen: list[str] = []
    address = url("/search", pipeline="reports", q="THE STENT", per_record="1", limit="4")
    while address:
        text = world.looking.get(address).text
        seen += re.findall(r"<h2>(\d+)", text)
        following = re.search(r'rel="next" href="([^"]+)"', text)
        address = following[1].replace("&amp;", "&") if following else ""
    assert len(seen) == len(set(seen)) > 50
    by_words = world.looking.get(url("/search", pipeline="reports", q="stent", hybrid="1")).text
    assert "the words of reports are not indexed" in by_words
    found = world.looking.get(url("/search", pipeline="reports", q="stent", limit="1")).text
    marked = re.findall(r"<mark>(.*?)</mark>", found, re.DOTALL)
    document = re.search(r'href="(/document[^"]+)"', found)
    assert document is not None
    whole = world.looking.get(document[1].replace("&amp;", "&")).text
    assert re.findall(r'<mark id="mark">(.*?)</mark>', whole, re.DOTALL) == marked


def test_nobody_acts_who_may_not(world: World, connection: Connection) -> None:
    wanted = {"action": "pause", "pipeline": "reports", "back": "pipeline"}
    own = form(world.acting_site, **wanted)

    def refused(client: httpx.Client, fields: dict[str, str], **headers: str) -> int:
        answer = client.post("/act", data=fields, headers=headers)
        assert "--allow-actions" in answer.text or client is world.acting
        return answer.status_code

    assert refused(world.looking, own) == 403
    assert "form_key" not in world.looking.get("/failures").text
    assert refused(world.acting, wanted) == 403
    assert refused(world.acting, {**own, "form_key": "é" * 30}) == 403
    assert refused(world.acting, own, origin="http://evil.example") == 403
    assert refused(world.acting, own, **{"sec-fetch-site": "cross-site"}) == 403
    assert refused(world.acting, own, host="evil.example") == 421
    assert refused(world.acting, {**own, "action": "drop"}) == 400
    assert world.acting.get("/act").status_code == 405
    cross = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert world.acting.get(PAGES[11], headers=cross).status_code == 403
    assert world.acting.get("/", headers=cross).status_code == 200
    assert connection.value("select count(*) from pgembed.pipelines where state = 'paused'") == 0


def test_a_key_is_asked_for_where_there_is_one(world: World) -> None:
    basic = base64.b64encode(f"me:{KEY}".encode()).decode()
    wrong = base64.b64encode(b"me:0123456789abcdef0124").decode()
    with serving(make_site(world.conninfo), key=ApiKey(KEY, "test")) as client:
        for path in ("/", "/live?page=overview", "/static/pgembed.css", "/metrics"):
            for headers in ({}, {"authorization": f"Basic {wrong}"}):
                answer = client.get(path, headers=headers)
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"].startswith("Basic ")
        answer = client.get("/", headers={"authorization": f"Basic {basic}"})
        assert answer.status_code == 200
        assert KEY not in answer.text


def test_forms_do_what_commands_do_with_any_name(world: World, connection: Connection) -> None:
    state = "select state from pgembed.pipelines where name = %s"
    for action, expected in (("pause", "paused"), ("resume", "active")):
        fields = form(world.acting_site, action=action, pipeline=ODD_NAME, back="pipeline")
        # As a browser sends what the page has: encoded once more.
        fields["pipeline"] = url("", p=ODD_NAME).removeprefix("?p=")
        answer = world.acting.post("/act", data=fields)
        assert answer.status_code == 303
        assert connection.value(state, (ODD_NAME,)) == expected
        page = world.acting.get(answer.headers["location"])
        assert f'role="status">{expected.replace("active", "resumed")} ' in page.text
        assert page.status_code == 200
        assert 'role="status">' not in world.acting.get(answer.headers["location"]).text
    # What is chosen is what is shown, with no dead letters left, too.
    chosen = world.looking.get(url("/failures", pipeline=ODD_NAME)).text
    assert re.search(r'" selected>评论/', chosen)


WATCHERS = """
select count(*) from pg_stat_activity
where datname = current_database() and application_name in ('pgembed progress', 'pgembed web')
"""


def test_fifty_viewers_cost_one_connection_and_leave_nothing(
    world: World, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_module, "IDLE_SECONDS", 0.5)
    site = make_site(world.conninfo)
    seen = threading.Barrier(51, timeout=60)
    done = "select done from pgembed.progress where pipeline = 'reports'"

    def look(_number: int) -> None:
        first: list[str] = []

        def on_event(text: str) -> bool:
            if not first:
                first.append(text)
                seen.wait()
            return f"{expected:,} of" in text

        events(client, "/live?page=overview", on_event)

    limits = httpx.Limits(max_connections=60)
    with serving(site) as small, ThreadPoolExecutor(50) as pool:
        with httpx.Client(base_url=small.base_url, timeout=30, limits=limits) as client:
            before = connection.value(WATCHERS)
            expected = connection.value(done) + 4_321
            viewers = [pool.submit(look, number) for number in range(50)]
            seen.wait()
            assert site.live.viewers == 50
            assert connection.value(WATCHERS) <= before + 1
            commit_some(connection, world.reports, 4_321)
            for each in viewers:
                each.result(30)
        wait_until(lambda: not site.live.viewers, "viewers that went away are forgotten")
        wait_until(lambda: not site.live.is_watching, "nobody looks, and nothing is read")
        wait_until(lambda: connection.value(WATCHERS) <= before, "its connection is closed")


def test_a_server_ends_with_streams_open_and_viewers_hear_of_it(world: World) -> None:
    opened, ended = threading.Event(), threading.Event()

    def look(base_url: httpx.URL) -> None:
        with httpx.Client(base_url=base_url, timeout=30) as own:
            events(own, "/live?page=machines", lambda _text: opened.set() or False)
            ended.set()

    with serving(make_site(world.conninfo)) as client:
        viewer = threading.Thread(target=look, args=(client.base_url,))
        viewer.start()
        assert opened.wait(20)
    viewer.join(5)
    assert ended.is_set()


def test_a_pipeline_that_is_dropped_is_said_to_be_gone(
    world: World, connection: Connection
) -> None:
    connection.execute("create table public.short_lived (id bigint primary key, body text)")
    make_pipeline(connection, Table(schema="public", name="short_lived"), name="short")
    texts: list[str] = []

    def on_event(text: str) -> bool:
        texts.append(text)
        if len(texts) == 1:
            with connect(world.conninfo) as own:
                drop_pipeline(own, load_pipeline(own, "short"), delete_vectors=True)
        return "It is gone" in text

    world.looking.get("/")
    wait_until(
        lambda: world.looking.get(url("/pipeline", name="short")).status_code == 200, "it shows"
    )
    events(world.looking, url("/live", page="pipeline", name="short"), on_event)
    assert world.looking.get(url("/pipeline", name="short")).status_code == 404


@pytest.mark.parametrize(
    ("page", "status"),
    [
        ("/events?before=yesterday", 400),
        ("/live?page=nothing", 400),
        (url("/pipeline", name="nothing"), 404),
        ("/nothing", 404),
    ],
)
def test_what_cannot_be_shown_has_the_status_of_its_error(
    world: World, page: str, status: int
) -> None:
    assert world.looking.get(page).status_code == status


def test_what_was_seen_stays_while_the_database_is_away(
    world: World, administrator: Administrator
) -> None:
    name = sql.Identifier(str(conninfo_to_dict(world.conninfo)["dbname"]))
    allow = sql.SQL("alter database {} allow_connections {}")

    def page() -> str:
        answer = world.looking.get("/")
        assert answer.status_code == 200
        return answer.text

    page()
    administrator.execute(allow.format(name, sql.SQL("false")))
    try:
        administrator.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s",
            (name.as_string().strip('"'),),
        )
        wait_until(lambda: "Not up to date" in page(), "the page says that it is old")
        assert "68." in page()
        assert world.looking.get(url("/pipeline", name="reports")).status_code == 503
        with serving(make_site(world.conninfo)) as fresh:
            assert fresh.get("/").status_code == 503
    finally:
        administrator.execute(allow.format(name, sql.SQL("true")))
    wait_until(lambda: "Not up to date" not in page(), "the page is up to date again")


def test_what_a_page_says_is_missing_is_all_that_is_missing(
    world: World, connection: Connection
) -> None:
    role = "web \"role'"
    identifier = sql.Identifier(role)
    connection.execute(sql.SQL("create role {} login password 'x'").format(identifier))
    as_role = make_conninfo(world.conninfo, user=role, password="x")

    def granted(text: str) -> int:
        said = re.search(r"<pre[^>]*><code>(.*?)</code>", text, re.DOTALL)
        assert said is not None, text
        statements = said[1].replace("&#34;", '"').replace("&#39;", "'")
        for statement in filter(str.strip, statements.split(";\n")):
            connection.execute(statement)
        return statements.count("grant")

    find = url("/search", pipeline="reports", q="stent")
    try:
        with serving(make_site(as_role)) as client:
            answer = client.get("/")
            assert answer.status_code == 503
            assert granted(answer.text) == 1 + len(VIEWS)
            wait_until(lambda: client.get("/").status_code == 200, "it may look")
            for page in ("/machines", "/failures", "/events", "/metrics", PAGES[6]):
                assert client.get(page).status_code == 200, page
            for page in ("/search", PAGES[9], find):
                answer = client.get(page)
                assert "<mark>" not in answer.text
                assert "grant select on pgembed.pipelines to" in answer.text, page
            granted(answer.text)
            assert "<mark>" in client.get(find).text
    finally:
        connection.execute(sql.SQL("drop owned by {0}; drop role {0}").format(identifier))
    documented = (Path(__file__).parents[2] / "docs" / "security.md").read_text(encoding="utf-8")
    (viewer,) = re.findall(r"grant select\s+on ([^;]*?)\s+to pgembed_viewer;", documented)
    assert {f"pgembed.{view}" for view in VIEWS} == set(re.split(r",\s*", viewer))


@needs_program("chromium")
def test_every_page_is_for_everybody(world: World, browser: Browser) -> None:
    from axe_playwright_python.sync_playwright import Axe

    axe, problems = Axe(), list[str]()
    contrast = {"runOnly": ["color-contrast", "link-in-text-block"]}

    def examine(address: str, options: dict[str, Any] | None = None) -> None:
        # To tell of what is right, too, takes longer than to look.
        found = axe.run(page, options={"resultTypes": ["violations"], **(options or {})})
        if found.violations_count:
            problems.append(f"{address}: {found.generate_report()}")

    with Watched(browser, str(world.acting.base_url)) as page:
        for address in (*DRAWN.values(), url("/pipeline", name=ODD_NAME)):
            answer = page.goto(address)
            assert answer is not None
            assert answer.ok, address
            examine(address)
            page.emulate_media(color_scheme="dark")
            examine(address, contrast)
            page.emulate_media(color_scheme="light")
            page.set_viewport_size(PHONE)  # type: ignore[arg-type]
            width = page.evaluate("document.documentElement.scrollWidth")
            assert width <= PHONE["width"], address
            page.set_viewport_size(DESKTOP)  # type: ignore[arg-type]
    assert problems == []


@needs_program("chromium")
@pytest.mark.skipif(not PICTURES, reason="PGEMBED_SCREENSHOTS names no folder to draw into")
def test_documents_have_pictures_of_clean_pages(
    server: LocalServer, administrator: Administrator, template: str, browser: Browser
) -> None:
    with _temporary_database(administrator, CLONE, template) as name:
        draw_pages(database_conninfo(server, name), browser)


@needs_program("chromium")
def test_numbers_move_and_a_person_can_act(
    world: World, browser: Browser, connection: Connection
) -> None:
    with Watched(browser, str(world.acting.base_url)) as page:
        page.goto("/")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "To the content"
        card = page.get_by_role("article", name="reports", exact=True)
        before, title = card.inner_text(), page.title()
        commit_some(connection, world.reports, 150_000)
        page.wait_for_function("before => document.title !== before", arg=title, timeout=20_000)
        assert card.inner_text() != before
        assert page.get_by_text("Live", exact=True).is_visible()

        page.goto(url("/failures", pipeline="reports"))
        page.get_by_role("link", name="Show the records of: ValueError").click()
        page.get_by_role("link", name="Show the text of 7").click()
        page.get_by_role("region", name="Text of 7").wait_for()
        assert "POISON <script>" in page.get_by_role("region", name="Text of 7").inner_text()
        dead = connection.value("select dead from pgembed.progress where pipeline = 'reports'")
        page.get_by_role("button", name="Retry 2", exact=True).press("Enter")
        page.get_by_role("dialog").get_by_role("button", name="Retry 2").click()
        page.get_by_text("put 2 dead letters of reports back into the queue").wait_for()
        left = connection.value("select dead from pgembed.progress where pipeline = 'reports'")
        assert left == dead - 2

        page.goto(url("/pipeline", name=ODD_NAME))
        page.get_by_role("button", name="Pause").click()
        page.get_by_role("dialog").get_by_role("button", name="Pause").click()
        page.get_by_text("paused", exact=True).first.wait_for()
        page.get_by_role("button", name="Resume").wait_for()
