"""Who is asking: a token sent with each request (programs), or a session that a token was exchanged for (the page).

A session is a cookie of name, end and a MAC whose key is the reviewer's digest in the store. So the server keeps no
secret and no list, a new token ends all sessions, and they outlive a restart. The price: who can read the store's
`reviewers` can make sessions, though no tokens.
"""

import hashlib
import hmac
import math
import threading
from collections import defaultdict, deque
from collections.abc import Callable

from fastapi import HTTPException, Request

from medq_ray.review.accounts import NAME, authenticate
from medq_ray.review.store import Store

COOKIE = "medq_session"
SESSION_SECONDS = 12 * 3600
"""A long working day."""
WINDOW = 300
"""Seconds for which a failed login counts."""
PER_NAME, PER_ADDRESS = 5, 20
"""Failed logins in WINDOW: in one name from one address, and from one address in any name. Not in one name from
anywhere, by which a stranger could lock a reviewer out; a token has 256 bits."""
READS = ("GET", "HEAD")


class Attempts:
    """Failed logins of the last WINDOW seconds. In memory: a restart forgets them, and each process has its own."""

    def __init__(self, now: Callable[[], float]):
        self.now, self.lock = now, threading.Lock()
        self.failed: dict[tuple[str, ...], deque[float]] = defaultdict(deque)

    def wait(self, name: str, address: str) -> int:
        """Seconds until another may be made, 0 for now."""
        now = self.now()
        with self.lock:
            for key in [key for key, times in self.failed.items() if times[-1] <= now - WINDOW]:
                del self.failed[key]
            limits = ((address, name), PER_NAME), ((address,), PER_ADDRESS)
            full = [self.failed[key][-limit] for key, limit in limits if len(self.failed.get(key, ())) >= limit]
        return max((math.ceil(start + WINDOW - now) for start in full if start > now - WINDOW), default=0)

    def add(self, name: str, address: str) -> None:
        with self.lock:
            for key, most in (((address, name), PER_NAME), ((address,), PER_ADDRESS)):
                self.failed[key].append(self.now())
                while len(self.failed[key]) > most:
                    self.failed[key].popleft()


class Access:
    def __init__(self, store: Store, now: Callable[[], float]):
        self.store, self.now, self.attempts = store, now, Attempts(now)

    def reviewer(self, request: Request) -> dict:
        """{name, role} of who is asking. Raises HTTPException 401 for nobody, 429 after too many wrong tokens, and 403
        for what a session sends without the page's CSRF token."""
        sent = request.headers.get("authorization")
        if sent is not None:
            return self.holder(request, sent.removeprefix("Bearer "))
        person = self.of_session(request)
        if person is None:
            raise HTTPException(401, "log in first")
        if request.method not in READS and not _equal(request.headers.get("x-csrf", ""), self.csrf(request, person)):
            raise HTTPException(403, "this was not sent by the page: load it again")
        return person

    def holder(self, request: Request, token: str) -> dict:
        """Whose token it is. Raises HTTPException 401 or 429."""
        name, address = token.rpartition(".")[0][:64], request.client.host if request.client else ""
        request.state.reviewer = name
        wait = self.attempts.wait(name, address)
        if wait:
            why = f"too many wrong tokens: try again in {wait} seconds"
            raise HTTPException(429, why, {"Retry-After": str(wait)})
        person = authenticate(self.store, token)
        if person is None:
            self.attempts.add(name, address)
            raise HTTPException(401, "no reviewer has this token")
        return person

    def of_session(self, request: Request) -> dict | None:
        """Whose session a request belongs to, None for nobody's, one that is over, and that of who was dismissed."""
        cookie = request.cookies.get(COOKIE, "")
        stamp, _, mac = cookie.rpartition(".")
        name, _, until = stamp.partition(".")
        person = self._row(name)
        if person is None or not _equal(mac, _mac(person, f"session {stamp}")):
            return None
        if not person["active"] or int(until) <= self.now():  # we wrote it
            return None
        request.state.reviewer = person["name"]
        return person

    def session(self, name: str) -> str:
        """The cookie of a new session."""
        stamp = f"{name.encode().hex()}.{int(self.now()) + SESSION_SECONDS}"
        return f"{stamp}.{_mac(self._row(name.encode().hex()), f'session {stamp}')}"

    def csrf(self, request: Request, person: dict) -> str:
        """What the page of this person's session sends with whatever changes something; no other site can read it."""
        return _mac(person, f"csrf {request.cookies[COOKIE]}")

    def _row(self, coded: str) -> dict | None:
        """The reviewer whose name is the hexadecimal `coded`."""
        try:
            name = bytes.fromhex(coded).decode()
        except ValueError:
            return None
        with self.store.reading() as transaction:
            return transaction.reviewer(name) if NAME.fullmatch(name) else None


def _mac(person: dict, text: str) -> str:
    return hmac.new(person["digest"].encode(), text.encode(), hashlib.sha256).hexdigest()


def _equal(first: str, second: str) -> bool:
    return hmac.compare_digest(first.encode(errors="replace"), second.encode(errors="replace"))
