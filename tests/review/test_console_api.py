"""The console over HTTP: who gets in, what leaves, what becomes of bad input."""

import json
import re
import sqlite3

import pytest
from fastapi.testclient import TestClient
from reading_room import draw, furnish, piece
from small_store import Clock

from medq_ray.config import Review
from medq_ray.review.accounts import dismiss, new_token
from medq_ray.review.console import console
from medq_ray.review.console.access import COOKIE, PER_ADDRESS, PER_NAME, SESSION_SECONDS, WINDOW
from medq_ray.review.console.guard import HEADERS, LARGEST_BODY
from medq_ray.review.queue import Queue
from medq_ray.review.store import Store, Transaction

SCRIPT = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
PEOPLE = {"ann": "reviewer", "ben": "reviewer", "lea": "lead"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("pictures"), size=56)


class Room:
    """A console over a store of a few items."""

    def __init__(self, address, pieces: list[dict]):
        self.clock, self.store = Clock(), Store(address)
        self.tokens = furnish(self.store, pieces, PEOPLE)
        self.app = console(self.store, Review(patients_together=False), self.clock)

    def client(self, name: str | None = None) -> TestClient:
        """name: as a program of theirs."""
        headers = {"authorization": f"Bearer {self.tokens[name]}"} if name else {}
        return TestClient(self.app, follow_redirects=False, headers=headers, raise_server_exceptions=False)

    def page(self, name: str) -> tuple[TestClient, str]:
        """A browser in which they have logged in, and its CSRF token."""
        browser = self.client()
        assert browser.post("/login", data={"token": self.tokens[name]}).status_code == 303
        return browser, re.search(r'name="csrf" content="(\w+)"', browser.get("/").text)[1]

    def logged(self, action: str) -> list[dict]:
        with self.store.reading() as transaction:
            return [row for row in transaction.logged() if row["action"] == action]


@pytest.fixture
def room(tmp_path, pictures):
    pieces = [piece(0, "yes_no", "mri", pictures), piece(1, "description", "ct", pictures),
              piece(2, "comparison", "fundus", pictures), piece(3, "what", "endoscopy", pictures)]  # fmt: skip
    made = Room(tmp_path / "review.db", pieces)
    yield made
    made.store.close()


def error(response, status: int) -> str:
    assert response.status_code == status
    assert set(response.json()) == {"error"} and "\n" not in response.json()["error"]
    return response.json()["error"]


READS = ("/api/me", "/api/colleagues", "/api/progress", "/api/stats", "/api/items/1/images/0", "/api/items/1/failures/0")
WRITES = ("/api/next", "/api/leases/1/renew", "/api/leases/1/release", "/api/undo", "/logout")


def test_the_whole_of_a_reading(address, pictures):
    """On both databases: next, prefetch, verdict, edit, skip, flag, undo, progress, statistics."""
    room = Room(address, [piece(n, "yes_no", "mri", pictures) for n in range(4)])
    ann = room.client("ann")
    first = ann.post("/api/next").json()
    second = ann.post(f"/api/next?after={first['token']}").json()
    assert second["token"] > first["token"] and second["item_id"] != first["item_id"]
    assert "holds 2 items already" in error(ann.post(f"/api/next?after={second['token']}"), 403)
    room.clock.time += 30
    verdict = {"action": "accept", "seconds": 7.5}
    given = ann.post(f"/api/leases/{first['token']}/verdict", json=verdict).json()
    assert given["counts"] and given == ann.post(f"/api/leases/{first['token']}/verdict", json=verdict).json()
    ann.post(f"/api/leases/{second['token']}/verdict", json={"action": "edit", "after": "B", "seconds": 12})
    assert ann.post("/api/undo").json()["item_id"] == second["item_id"]
    assert ann.get("/api/progress").json() == {"items": 4, "done": 1, "unread": 3, "second": 0, "adjudicate": 0,
                                               "held": 1}  # fmt: skip
    token = ann.post("/api/next").json()["token"]
    assert ann.post(f"/api/leases/{token}/skip", json={"reason": "later", "seconds": 1}).json()["counts"]
    token = ann.post("/api/next").json()["token"]
    assert ann.post(f"/api/leases/{token}/flag", json={"reason": "odd", "seconds": 1}).json()["counts"]
    assert room.client("ben").post("/api/next").json()["notes"] == [
        {"reviewer": "ann", "colleague": None, "reason": "odd"}]  # fmt: skip
    token = ann.post("/api/next").json()["token"]
    assert ann.post(f"/api/leases/{token}/renew").json() == {"until": room.clock() + 600}
    assert ann.post(f"/api/leases/{token}/release").status_code == 204
    total = ann.get("/api/stats").json()["total"]
    assert total["verdicts"] == {"accept": 1, "edit": 0, "reject": 0} and total["average_minutes"] == 7.5 / 60
    room.store.close()


@pytest.mark.parametrize("path", READS + WRITES)
def test_nobody_gets_anything_without_a_token(room, path):
    for headers in ({}, {"authorization": "Bearer ann.x"}, {"authorization": "Basic YTpi"},
                    {"cookie": f"{COOKIE}=x.9.y"}):  # fmt: skip
        ask = room.client().get if path in READS else room.client().post
        error(ask(path, headers=headers), 401)
    assert room.logged("refused")[-1]["detail"].startswith(f"401 {'GET' if path in READS else 'POST'} {path}")


def test_pages_send_strangers_to_the_login(room):
    for path in ("/", "/stats"):
        reply = room.client().get(path)
        assert (reply.status_code, reply.headers["location"]) == (303, "/login")


def test_a_login_is_a_strict_cookie_and_is_logged(room):
    reply = room.client().post("/login", data={"token": room.tokens["ann"]})
    cookie = reply.headers["set-cookie"]
    assert reply.headers["location"] == "/" and "HttpOnly" in cookie and "SameSite=strict" in cookie
    assert "Secure" not in cookie and room.tokens["ann"].split(".")[1] not in cookie
    secure = TestClient(room.app, base_url="https://review", follow_redirects=False)
    assert "Secure" in secure.post("/login", data={"token": room.tokens["ann"]}).headers["set-cookie"]
    assert [row["reviewer"] for row in room.logged("login")] == ["ann", "ann"]


def test_a_session_ends(room):
    browser, csrf = room.page("ann")
    assert browser.get("/api/me").json() == {"name": "ann", "role": "reviewer"}
    room.clock.time += SESSION_SECONDS - 1
    assert browser.get("/api/me").status_code == 200
    room.clock.time += 1
    error(browser.get("/api/me"), 401)
    browser, csrf = room.page("ann")
    assert browser.post("/logout", headers={"x-csrf": csrf}).status_code == 204
    error(browser.get("/api/me"), 401)


def test_a_new_token_ends_all_sessions(room):
    browser, _ = room.page("ann")
    new_token(room.store, "ann")
    error(browser.get("/api/me"), 401)


def test_who_was_dismissed_is_out(room):
    browser, csrf = room.page("ann")
    program = room.client("ann")
    dismiss(room.store, "ann")
    error(browser.get("/api/me"), 401)
    error(browser.post("/api/next", headers={"x-csrf": csrf}), 401)
    error(program.post("/api/next"), 401)
    assert browser.get("/").headers["location"] == "/login"


def test_a_session_cannot_be_forged(room):
    browser, _ = room.page("ann")
    name, until, mac = browser.cookies[COOKIE].split(".")
    lea = b"lea".hex()
    for forged in (f"{lea}.{until}.{mac}", f"{name}.{int(until) + 9}.{mac}", f"{name}.{until}.{mac[:-1]}", "", "..",
                   f"{name}.x.{mac}", f"zz.{until}.{mac}", f"00.{until}.{mac}", f"ff.{until}.{mac}", "\"a\x80"):  # fmt: skip
        error(room.client().get("/api/me", headers={"cookie": f"{COOKIE}={forged}".encode("latin-1")}), 401)


@pytest.mark.parametrize("path", WRITES)
def test_what_a_session_sends_needs_the_pages_token(room, path):
    browser, _ = room.page("ann")
    _, foreign = room.page("ben")
    for headers in ({}, {"x-csrf": ""}, {"x-csrf": foreign}, {"x-csrf": "\u00e9".encode("latin-1")}):
        assert "load it again" in error(browser.post(path, headers=headers), 403)
    assert room.logged("refused")[-1]["reviewer"] == "ann"


def test_another_site_cannot_log_anybody_in(room):
    reply = room.client().post("/login", data={"token": room.tokens["ann"]}, headers={"sec-fetch-site": "cross-site"})
    assert "another site" in error(reply, 403)


def test_guessing_is_slowed_down_by_name_and_by_address(room):
    stranger = room.client()
    for _ in range(PER_NAME):
        assert stranger.post("/login", data={"token": "ann.guess"}).status_code == 401
    assert stranger.post("/login", data={"token": "ann.guess"}).status_code == 429
    assert stranger.post("/login", data={"token": room.tokens["ann"]}).status_code == 429  # though it is right
    assert stranger.post("/login", data={"token": room.tokens["ben"]}).status_code == 303
    for n in range(PER_ADDRESS - PER_NAME):
        error(room.client().get("/api/me", headers={"authorization": f"Bearer n{n}.x"}), 401)
    reply = room.client("ben").get("/api/me")
    assert "try again in 300 seconds" in error(reply, 429) and reply.headers["retry-after"] == "300"
    elsewhere = TestClient(room.app, client=("10.0.0.9", 1), headers={"authorization": f"Bearer {room.tokens['ann']}"})
    assert elsewhere.get("/api/me").status_code == 200  # nobody locks her out from afar
    room.clock.time += WINDOW
    assert stranger.post("/login", data={"token": room.tokens["ann"]}).status_code == 303
    details = [row["detail"] for row in room.logged("refused")]
    assert len(details) == PER_ADDRESS + 3 and not any("guess" in detail for detail in details)


def test_a_forged_or_foreign_lease_is_refused_and_logged(room):
    ann, ben, lea = (room.client(name) for name in ("ann", "ben", "lea"))
    token = ann.post("/api/next").json()["token"]
    body = {"action": "accept", "seconds": 1}
    for other in (ben, lea):
        for number in (token, token + 1, 10**12, 0, -1, -(10**30)):
            assert "is not" in error(other.post(f"/api/leases/{number}/verdict", json=body), 403)
    for verb in ("renew", "release"):
        error(ben.post(f"/api/leases/{token}/{verb}"), 403)
    assert len(room.logged("refused")) == 14 and not room.logged("accept")
    assert ann.post(f"/api/leases/{token}/verdict", json=body).json()["counts"]


def test_a_flag_may_name_a_colleague(room):
    ann, ben, lea = (room.client(name) for name in ("ann", "ben", "lea"))
    assert ann.get("/api/colleagues").json() == [{"name": "ben", "role": "reviewer"}, {"name": "lea", "role": "lead"}]
    item = ann.post("/api/next").json()
    path, body = f"/api/leases/{item['token']}/flag", {"reason": "look", "seconds": 1}
    for name in ("ann", "eve", SCRIPT):
        error(ann.post(path, json=body | {"colleague": name}), 400)
    given = ann.post(path, json=body | {"colleague": "lea"}).json()
    assert given["counts"] and given == ann.post(path, json=body | {"colleague": "lea"}).json()
    assert ben.post("/api/next").json()["item_id"] != item["item_id"]
    mine = lea.post("/api/next").json()
    assert mine["item_id"] == item["item_id"]
    assert mine["notes"] == [{"reviewer": "ann", "colleague": "lea", "reason": "look"}]
    dismiss(room.store, "ben")
    assert ann.get("/api/colleagues").json() == [{"name": "lea", "role": "lead"}]


def test_a_late_verdict_is_kept_and_told(room):
    ann = room.client("ann")
    token = ann.post("/api/next").json()["token"]
    room.clock.time += 3600
    body = {"action": "accept", "seconds": 1}
    given = ann.post(f"/api/leases/{token}/verdict", json=body).json()
    assert not given["counts"] and given["why"] == "the lease had run out"


def test_images_are_for_who_holds_or_held_them_and_leads(room):
    ann, ben, lea = (room.client(name) for name in ("ann", "ben", "lea"))
    item = ann.post("/api/next").json()
    for path in (f"/api/items/{item['item_id']}/images/0", f"/api/items/{item['item_id']}/failures/2"):
        for person in (ann, lea):
            reply = person.get(path)
            assert reply.status_code == 200 and reply.headers["content-type"] == "image/png"
            assert reply.content.startswith(b"\x89PNG") and reply.headers["cache-control"] == "no-store"
        assert "not ben's to see" in error(ben.get(path), 403)
    ann.post(f"/api/leases/{item['token']}/verdict", json={"action": "accept", "seconds": 1})
    assert ann.get(f"/api/items/{item['item_id']}/images/0").status_code == 200
    seen = room.logged("image")
    assert [(row["reviewer"], row["item_id"]) for row in seen] == [("ann", 1), ("lea", 1), ("ann", 1)]
    assert [row["reviewer"] for row in room.logged("refused")] == ["ben", "ben"]


@pytest.mark.parametrize("path", [
    "/api/items/1/images/1", "/api/items/1/images/-1", "/api/items/1/failures/3", "/api/items/1/images/..%2f..%2fetc",
    "/api/items/1/images/..%2f0", "/api/items/99999999999/images/0", "/api/items/-99999999999999999999/images/0", "/api/items/1/images/99999999999999999999",
    "/static/../app.py", "/static/..%2fapp.py", "/static/%2e%2e/app.py", "/static//etc/passwd", "/static/.%2e/guard.py",
])  # fmt: skip
def test_no_path_leads_out(room, path):
    lea = room.client("lea")
    lea.post("/api/next")
    assert error(lea.get(path), lea.get(path).status_code) and lea.get(path).status_code in (400, 403, 404)


@pytest.mark.parametrize("path", ["/static/..%2fapp.py", "/static/%2e%2e%2f%2e%2e%2fetc/passwd",
                                  "/api/items/1/images/..%2f..%2fetc", "/..%2f..%2fetc%2fpasswd"])  # fmt: skip
def test_who_climbs_is_in_the_log(room, path):
    ann = room.client("ann")
    ann.get(path)
    (line,) = room.logged("refused")
    assert line["detail"].startswith("404 GET /") and ".." in line["detail"] and "from testclient" in line["detail"]
    assert ann.post("/api/next").status_code == 200


def test_no_path_leaves(room, pictures):
    folder = str(pictures["mri-none"].rpartition("/")[0])
    ann = room.client("ann")
    told = []
    while item := ann.post("/api/next").json():
        told.append(json.dumps(item))
        ann.post(f"/api/leases/{item['token']}/verdict", json={"action": "reject", "reason": "x", "seconds": 1})
    told += [ann.get(path).text for path in ("/api/stats", "/api/progress", "/api/openapi.json")]
    assert len(told) == 7 and not any(folder in text or ".png" in text or "review.db" in text for text in told)


def test_an_image_that_is_gone_is_told_without_its_path(room, tmp_path):
    with room.store.writing() as transaction:
        payload = transaction.item(1)["payload"] | {"images": [str(tmp_path / "gone.png")]}
    with sqlite3.connect(tmp_path / "review.db") as connection:
        connection.execute("UPDATE items SET payload = ? WHERE item_id = 1", [json.dumps(payload)])
    told = error(room.client("lea").get("/api/items/1/images/0"), 404)
    assert told == "image 0 of item 1 cannot be read"
    assert "gone.png" in room.logged("unreadable")[0]["detail"]


def test_script_stays_text(tmp_path, pictures):
    label = f"{SCRIPT} Overall, the quality of this image is good."
    pieces = [piece(n, "description", "mri", pictures, reads=2, label=label) for n in range(3)]
    room = Room(tmp_path / "review.db", pieces)
    ann, ben, lea = (room.client(name) for name in ("ann", "ben", "lea"))
    item = ann.post("/api/next").json()
    ann.post(f"/api/leases/{item['token']}/flag", json={"reason": SCRIPT, "seconds": 1})
    item = ben.post("/api/next").json()
    assert item["notes"][0]["reason"] == SCRIPT and SCRIPT in item["before"]
    ben.post(f"/api/leases/{item['token']}/verdict", json={"action": "reject", "reason": SCRIPT, "seconds": 1})
    item = ann.post("/api/next").json()
    body = {"action": "edit", "after": f"{SCRIPT} Severe motion. Overall, the quality of this image is reject."}
    assert ann.post(f"/api/leases/{item['token']}/verdict", json=body | {"seconds": 1}).json()["counts"]
    ann.post(f"/api/leases/{ann.post('/api/next').json()['token']}/skip", json={"reason": SCRIPT, "seconds": 1})
    for path in ("/api/stats", "/api/progress"):
        assert lea.get(path).headers["content-type"] == "application/json"
    browser, _ = room.page("lea")
    for path in ("/", "/stats"):
        assert "alert(1)" not in browser.get(path).text
    reply = room.client().post("/login", data={"token": f"{SCRIPT}.x"})
    assert reply.status_code == 401 and "alert(1)" not in reply.text
    room.store.close()


@pytest.mark.parametrize(("body", "complaint"), [
    ({"seconds": 1}, "action: Field required"),
    ({"action": "delete", "seconds": 1}, "action: Input should be 'accept', 'edit' or 'reject'"),
    ({"action": "accept"}, "seconds: Field required"),
    ({"action": "accept", "seconds": -1}, "seconds: Input should be greater than or equal to 0"),
    ({"action": "accept", "seconds": 1, "reviewer": "lea"}, "reviewer: Extra inputs are not permitted"),
    ({"action": "reject", "seconds": 1}, "reject needs a reason"),
    ({"action": "reject", "seconds": 1, "reason": "x" * 4001}, "reason: String should have at most 4000 characters"),
    ({"action": "reject", "seconds": 1, "reason": "a\0b"}, "reason has control characters"),
    ({"action": "edit", "seconds": 1, "after": "D"}, "expected one of the 2 letters"),
    ({"action": "edit", "seconds": 1, "after": "A"}, "the edit changes nothing"),
])  # fmt: skip
def test_bad_input_is_one_line(room, body, complaint):
    ann = room.client("ann")
    token = ann.post("/api/next").json()["token"]
    assert complaint in error(ann.post(f"/api/leases/{token}/verdict", json=body), 400)


def test_a_stranger_is_not_told_what_was_wrong(room):
    assert error(room.client().post("/api/leases/x/verdict", json={}), 401) == "log in first"
    browser, _ = room.page("ann")
    assert "load it again" in error(browser.post("/api/leases/x/verdict", json={}), 403)
    error(room.client("ann").post("/api/leases/x/verdict", json={}), 400)
    assert [row["reviewer"] for row in room.logged("refused")] == ["", "ann", "ann"]


@pytest.mark.parametrize("raw", [b"{", b"[]", b"\xff\xfe", b'{"action":"accept","seconds":NaN}',
                                 b'{"action":"reject","seconds":1,"reason":"\\ud800"}', b"[" * 30_000])  # fmt: skip
def test_bytes_that_are_no_verdict_are_refused(room, raw):
    ann = room.client("ann")
    token = ann.post("/api/next").json()["token"]
    error(ann.post(f"/api/leases/{token}/verdict", content=raw, headers={"content-type": "application/json"}), 400)


def test_a_body_ends_at_the_limit(room):
    large = b"x" * (LARGEST_BODY + 1)

    def in_pieces():  # and who does not say how much is coming
        for _ in range(40):
            yield b"x" * 4096

    for path in ("/login", "/api/undo", "/api/leases/1/verdict", "/nowhere"):
        for content in (large, in_pieces()):
            assert "more than 65,536 bytes" in error(room.client("ann").post(path, content=content), 413)
    assert len(room.logged("refused")) == 8
    assert room.client("ann").get("/api/me").status_code == 200


def test_every_reply_has_strict_headers(room):
    browser, _ = room.page("ann")
    for path in ("/", "/stats", "/login", "/api/me", "/api/nothing", "/static/page.js", "/static/console.css"):
        headers = browser.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == ("no-cache" if path.startswith("/static") else "no-store")
    for path in ("/", "/stats", "/login"):
        text = browser.get(path).text
        assert not re.search(r"<style|\sstyle=|\son\w+=|https?://", text)
        assert all("src=" in script for script in re.findall(r"<script[^>]*>", text))


def test_strict_headers_also_where_something_is_wrong(room, monkeypatch):
    """Whatever the status, and no word about the inside where it is our fault."""
    def broken(*_):
        raise RuntimeError("secret /inside/path")

    ann, large = room.client("ann"), b"x" * (LARGEST_BODY + 1)
    replies = [ann.get("/nowhere"), ann.get("/static/nowhere"), ann.put("/api/me"), room.client().get("/api/me"),
               ann.post("/api/leases/1/verdict", json={}), ann.post("/api/leases/7/renew"),
               ann.post("/api/undo", content=large)]  # fmt: skip
    monkeypatch.setattr(Queue, "left", broken)
    monkeypatch.setattr(Transaction, "reviewers", broken)
    replies += [ann.get("/api/progress"), ann.get("/api/stats"), ann.get("/stats")]
    browser, _ = room.page("lea")
    replies.append(browser.get("/stats"))
    assert [reply.status_code for reply in replies] == [404, 404, 405, 401, 400, 403, 413, 500, 500, 303, 500]
    for reply in replies:
        assert HEADERS.items() <= dict(reply.headers).items() and reply.headers["cache-control"] in (
            "no-store", "no-cache")  # fmt: skip
        assert "secret" not in reply.text and "inside" not in reply.text and "Traceback" not in reply.text
        assert reply.status_code == 303 or error(reply, reply.status_code)


def test_a_reviewer_sees_their_own_numbers_and_a_lead_all(room):
    assert [row["name"] for row in room.client("ann").get("/api/stats").json()["reviewers"]] == ["ann"]
    assert len(room.client("lea").get("/api/stats").json()["reviewers"]) == 3
    browser, _ = room.page("ann")
    assert ">ann<" in browser.get("/stats").text and ">ben<" not in browser.get("/stats").text


def test_reads_are_blind_and_shown_to_who_adjudicates(tmp_path, pictures):
    room = Room(tmp_path / "review.db", [piece(0, "yes_no", "mri", pictures, reads=2)])
    for name, body in (("ann", {"action": "accept"}), ("ben", {"action": "edit", "after": "B"})):
        person = room.client(name)
        item = person.post("/api/next").json()
        assert item["stage"] == "read" and item["reads"] == []
        person.post(f"/api/leases/{item['token']}/verdict", json=body | {"seconds": 1})
    assert [room.client(name).post("/api/next").json() for name in ("ann", "ben")] == [None, None]
    item = room.client("lea").post("/api/next").json()
    assert item["stage"] == "adjudicate"
    for name in ("ann", "ben"):  # nor by the lead's lease
        error(room.client(name).post(f"/api/leases/{item['token']}/verdict", json={"action": "accept", "seconds": 1}), 403)
    assert [row["reviewer"] for row in room.logged("refused")] == ["ann", "ben"]
    assert [(read["reviewer"], read["action"], read["after"]) for read in item["reads"]] == [
        ("ann", "accept", "A"), ("ben", "edit", "B")]  # fmt: skip
    room.store.close()


def test_a_description_comes_with_the_sentences_it_is_made_of(room):
    ann = room.client("ann")
    first = ann.post("/api/next").json()
    fields = ann.post(f"/api/next?after={first['token']}").json()["fields"]
    assert first["fields"] is None and first["choice"] == 0
    assert fields["opening"] == "A ct image." or fields["opening"] == "A CT image."
    assert fields["found"] == {"degradations": ["metal"], "severity": "mild", "grade": "usable"}
    assert fields["findings"]["ring"]["severe"] == "Severe ring." and set(fields["names"]) == {
        "blur", "noise", "metal", "ring", "sparse_view"}  # fmt: skip


def test_without_the_store_one_line_says_so(room, tmp_path, monkeypatch):
    def gone(*_):
        raise ConnectionError(f"review store {tmp_path}: disk I/O error")

    ann = room.client("ann")
    monkeypatch.setattr(room.store, "reading", gone)
    monkeypatch.setattr(room.store, "writing", gone)
    for reply in (ann.get("/api/me"), ann.post("/login", data={"token": "ann.x"}), room.client().get("/api/me")):
        assert "cannot be reached" in error(reply, 503) and str(tmp_path) not in reply.text


def test_the_interface_describes_itself(room):
    paths = room.client().get("/api/openapi.json").json()["paths"]
    assert "/api/leases/{token}/verdict" in paths and len(paths) == 14
