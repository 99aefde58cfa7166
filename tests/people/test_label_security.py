"""What the server refuses, and what the page does not learn."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from stores import opened, pair, side

pytest.importorskip("starlette")

from alignkit.errors import RecipeError
from alignkit_plugins.people.texts import visible
from alignkit_plugins.people.votes import labeled
from alignkit_plugins.servers.server import Address, address_of, server_of
from tests.people.injections import INJECTIONS
from tests.people.pages import (
    ADDRESS,
    SECRET,
    Page,
    application,
    left_in_the_middle,
    pairs,
    visit,
)
from tests.rows import cells


@pytest.fixture
def site(tmp_path: Path) -> Any:
    with opened(tmp_path, *pairs(4)) as store:
        yield (*application(store, ["ada", "bob"]), store)


def client(app: Any, base: str = ADDRESS) -> Any:
    from starlette.testclient import TestClient

    return TestClient(app, base_url=base, follow_redirects=False)


def test_the_link_becomes_a_cookie(site: Any) -> None:
    app, sessions, _ = site
    browser, token = client(app), sessions["ada"].token
    for path in ("/", "/?token=wrong"):
        assert browser.get(path).status_code == 401
    answer = browser.get(f"/?token={token}")
    cookie = answer.headers["set-cookie"]
    assert answer.status_code == 303 and answer.headers["location"] == "/"
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and token not in cookie
    # Other servers on this machine have other names
    assert cookie.startswith("alignkit-label-8765=")
    assert [browser.get(path).status_code for path in ("/", "/?token=wrong")] == [200, 401]
    assert len(token) >= 43  # 256 bits


def test_a_second_tab_leaves_the_first_one_its_session(site: Any) -> None:
    app, sessions, store = site
    ada = visit(app, sessions)
    cookies = dict(ada.client.cookies)
    ada.client.get(f"/?token={sessions['ada'].token}")
    assert dict(ada.client.cookies) == cookies
    assert ada.post("submit", ada.event(ada.next()["item"], side("A"))).status_code == 200
    assert [event.annotator for event in store.events()] == ["ada"]
    ada.client.get(f"/?token={sessions['bob'].token}")  # another person's
    assert dict(ada.client.cookies) != cookies
    assert ada.post("next", {}).status_code == 403


def test_exactly_the_given_host(tmp_path: Path) -> None:
    """A proxy that does TLS speaks HTTP with the server, and passes on the name by which browsers
    call it.
    """
    host = "labels.example.org"
    address = Address("127.0.0.1", (host,), f"https://{host}:8443")
    assert address_of(f"https://{host.upper()}:8443/") == address
    assert address_of("localhost") == address_of(None)
    with opened(tmp_path, *pairs(2)) as store:
        app, sessions = application(store, address=address_of(f"https://{host}"))
        browser = client(app, f"http://{host}")
        cookie = browser.get(f"/?token={sessions['ada'].token}").headers["set-cookie"]
        assert "Secure" in cookie
        browser.headers["cookie"] = cookie.partition(";")[0]  # which a test client keeps from HTTP
        csrf = re.findall('name="csrf" content="([^"]*)"', browser.get("/").text)[0]
        ada = Page(browser, csrf, "", "")
        assert ada.post("next", {}, origin=f"https://{host}").json()["item"]
        for wrong in (f"http://{host}", ADDRESS, "https://evil.example"):
            assert ada.post("next", {}, origin=wrong).status_code == 403
        assert browser.get("/", headers={"host": host.upper()}).status_code == 200
        for wrong in ("127.0.0.1:8765", "localhost", f"x.{host}", f"{host}.evil.example"):
            answer = browser.get("/", headers={"host": wrong})
            assert answer.status_code == 400 and "content-security-policy" in answer.headers


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "http://a.example", "https://", "https://a/b", "a b", "", "a@b"]
)
def test_what_is_no_address(host: str) -> None:
    with pytest.raises(RecipeError, match="no address that browsers can open"):
        address_of(host)


REFUSED = """
{"host": ""}                                            | 400
{"host": "evil.example:8765"}                           | 400
{"host": "["}                                           | 400
{"host": "@localhost"}                                  | 400
{"host": "127.0.0.1.evil.example"}                      | 400
{"origin": "null"}                                      | 403
{"origin": "http://127.0.0.1:9999"}                     | 403
{"origin": "https://127.0.0.1:8765"}                    | 403
{"x-csrf-token": ""}                                    | 403
{"x-csrf-token": "guess"}                               | 403
{"sec-fetch-site": "same-site"}                         | 403
{"sec-fetch-site": "cross-site"}                        | 403
{"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"} | 403
{"content-type": "text/plain"}                          | 415
{"content-type": "application/x-www-form-urlencoded"}   | 415
"""


@pytest.mark.parametrize(("headers", "status"), cells(REFUSED))
def test_other_sites_cannot_label(site: Any, headers: str, status: str) -> None:
    app, sessions, store = site
    ada = visit(app, sessions)
    event = ada.event(ada.next()["item"], side("A"))
    assert ada.post("submit", event, **json.loads(headers)).status_code == int(status)
    assert store.events() == []
    assert ada.post("submit", event, **{"sec-fetch-site": "same-origin"}).status_code == 200


def test_without_an_origin_or_a_session_nothing_is_stored(site: Any) -> None:
    app, sessions, store = site
    ada = visit(app, sessions)
    event = ada.event(ada.next()["item"], side("A"))
    bare = {"x-csrf-token": ada.csrf}
    assert ada.client.post("/api/label/submit", json=event, headers=bare).status_code == 403
    bob = visit(app, sessions, "bob")
    for other, status in ((client(app), 401), (bob.client, 403)):
        assert Page(other, ada.csrf, "", "").post("submit", event).status_code == status
    assert store.events() == []
    assert ada.client.get("/api/label/submit").status_code == 405
    options = ada.client.options("/api/label/submit", headers={"origin": "http://evil.example"})
    assert "access-control-allow-origin" not in options.headers


@pytest.mark.parametrize(
    "body", ["{", "[]", "[" * 100_000, b"\xff", '{"uuid": NaN}', "", r'{"\ud800": 1}']
)
def test_bodies_that_are_none(site: Any, body: str | bytes) -> None:
    ada = visit(*site[:2])
    headers = {"origin": ADDRESS, "x-csrf-token": ada.csrf, "content-type": "application/json"}
    answer = ada.client.post("/api/label/submit", content=body, headers=headers)
    assert answer.status_code == 422 and answer.json()["error"]["message"]


def test_a_client_that_leaves_in_the_middle_of_a_request(site: Any) -> None:
    """No error is left for the server to print."""
    ada = visit(*site[:2])
    cookie = "; ".join(f"{name}={value}" for name, value in ada.client.cookies.items())
    headers = {"origin": ADDRESS, "x_csrf_token": ada.csrf, "cookie": cookie}
    for act in ("next", "submit", "undo", "consent"):
        left_in_the_middle(site[0], f"/api/label/{act}", **headers)


def test_a_large_body_is_refused(site: Any) -> None:
    ada = visit(*site[:2])
    room = (1 << 20) - 40
    assert ada.post("submit", {"value": "x" * room}).status_code == 422
    assert ada.post("submit", {"value": "x" * (room + 40)}).status_code == 413
    coded = {"content-type": "application/json; charset=utf-8"}
    assert ada.post("next", {}, **coded).status_code == 200


PATHS = r"""
../app.py
..%2fapp.py
%2e%2e/app.py
....//app.py
/etc/passwd
..\app.py
label.js%00.py
"""


def test_only_static_files_are_served(site: Any) -> None:
    ada = visit(*site[:2])
    for path in PATHS.split():
        assert ada.client.get(f"/static/{path}").status_code in (404, 405)
    assert ada.client.get("/static/label.js").status_code == 200


POLICY = """
default-src 'none'
script-src 'self'
style-src 'self'
img-src 'self' data:
connect-src 'self'
form-action 'self'
frame-ancestors 'none'
base-uri 'none'
require-trusted-types-for 'script'
"""
SENT = """
cache-control                | no-store
x-content-type-options       | nosniff
x-frame-options              | DENY
referrer-policy              | no-referrer
cross-origin-opener-policy   | same-origin
cross-origin-resource-policy | same-origin
permissions-policy           | camera=(), geolocation=(), microphone=()
"""


def test_every_answer_has_the_headers(site: Any) -> None:
    ada = visit(*site[:2])
    for path in ("/", "/static/label.js", "/nothing", "/api/label/next"):
        headers = ada.client.get(path).headers
        policy = set(headers["content-security-policy"].split("; "))
        assert policy == set(POLICY.strip().splitlines())
        assert [headers[name] for name, _ in cells(SENT)] == [value for _, value in cells(SENT)]
    config = server_of(site[0]).config
    assert not (config.proxy_headers or config.server_header or config.access_log)
    other = {"sec-fetch-site": "cross-site"}
    modes = [{**other, "sec-fetch-mode": mode} for mode in ("cors", "navigate")]
    assert [ada.client.get("/", headers=mode).status_code for mode in modes] == [403, 200]
    assert not [part for part in (" style=", "<style", "onclick") if part in ada.html]
    assert ada.html.count("<script") == 1


def test_the_page_does_not_learn_who_wrote_an_answer(tmp_path: Path) -> None:
    """Nor which of them the data have first, nor that an item is gold."""
    gold, others = pairs(3, gold={"better": 0}), pairs(18, origins=(SECRET, SECRET))[3:]
    with opened(tmp_path, *gold, *others, name=f"{SECRET}.feedback") as store:
        ada = visit(*application(store))
        assert SECRET not in ada.html
        shapes, names, lefts = set(), set(), dict[str, str]()
        state = ada.next()
        while item := state["item"]:
            text = json.dumps(state)
            assert SECRET not in text and "gold" not in text.replace("good", "")
            shapes.add((tuple(sorted(item)), len(item["id"]), tuple(sorted(state))))
            names.add(item["shown"][0])
            lefts[item["id"]] = item["responses"][0][0]["text"]
            state = ada.post("submit", ada.event(item, side("A"))).json()
        assert len(shapes) == 1 and len(names) == 18
        assert {text.split()[0] for text in lefts.values()} == {"good", "poor"}
        # What she preferred is what she saw on the left, whatever comes first in the store
        for entry in labeled(store):
            (label,) = entry.votes.values()
            answer = entry.item.responses[label["better"]]
            assert answer == lefts[entry.item.id]


def test_texts_are_json_and_never_html(tmp_path: Path) -> None:
    """Injections, as prompts, answers, notes, guidelines and names."""
    assert len(set(INJECTIONS)) == 120
    texts, name = INJECTIONS[::8], "<script>window.hit=1"
    with opened(tmp_path, *(pair(text, f"a{text}", f"b{text}") for text in texts)) as store:
        app, sessions = application(store, [name], "\n\n".join(INJECTIONS))
        ada = visit(app, sessions, name)
        for text in texts:
            answer = ada.post("next", {})
            assert answer.headers["content-type"] == "application/json"
            item = answer.json()["item"]
            assert item["prompt"][0]["text"] == text
            assert ada.post("submit", ada.event(item, side("A", note=text))).status_code == 200
        assert "window.hit" in ada.html and ada.html.count("<script") == 1
        tags = "img svg iframe object embed style base math template"
        assert not [tag for tag in tags.split() if f"<{tag}" in ada.html]
        assert "<body " not in ada.html and 'href="javascript' not in ada.html


def test_hidden_characters_are_named() -> None:
    text = "a\u202eb\u200bc\0d\ufeffe\U000e0041f\r\ng\x1b[31m"
    assert visible(text) == "a⟦U+202E⟧b⟦U+200B⟧c⟦U+0000⟧d⟦U+FEFF⟧e⟦U+E0041⟧f\ng⟦U+001B⟧[31m"
    shown = "⟦U+2064⟧⟦U+FFFB⟧⟦U+007F⟧⟦U+009F⟧⟦U+D800⟧⟦U+E0100⟧"
    assert visible("\u2064\ufffb\x7f\x9f\ud800\U000e0100") == shown
    fine = "שלום, e\u0301, 👩‍🚀, می‌خواهم\ttab\nline"
    assert visible(fine) == fine
