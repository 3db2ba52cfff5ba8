"""Who may review: names, roles and tokens.

A token is 256 random bits. Nobody guesses or tabulates these, however fast the hash is, so that a salted SHA-256 makes
a stolen store useless; scrypt's slowness protects words that people choose, and would cost 0.1 s a request here.
"""

import hashlib
import hmac
import re
import secrets

from medq_ray.review.store import ROLES, Store

NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 _@-]{0,62}[A-Za-z0-9])?")
"""No dot, which divides the name from the secret in a token, and nothing that a page or a table must escape."""


def enrol(store: Store, name: str, role: str, *, simulated: bool = False) -> str:
    """Let somebody review; their token, which is kept nowhere. simulated: a program, whose verdicts say so.

    Raises ValueError for a name that is taken or cannot be one, and for an unknown role.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"reviewer {name!r}: expected 1 to 64 letters, digits, blanks, '_', '@' or '-'")
    _check_role(role)
    secret = secrets.token_urlsafe(32)
    with store.writing(alone=True) as transaction:
        if transaction.reviewer(name) is not None:
            raise ValueError(f"reviewer {name!r} is enrolled already; `medq review token` replaces a lost token")
        row = {"name": name, "role": role, "simulated": simulated, "active": True}
        transaction.add_reviewer(row | _sealed(secret))
    return f"{name}.{secret}"


def new_token(store: Store, name: str) -> str:
    """A token in the place of a reviewer's old one, which also brings back whom `dismiss` sent away. Raises ValueError
    for an unknown name."""
    secret = secrets.token_urlsafe(32)
    _change(store, name, {"active": True} | _sealed(secret))
    return f"{name}.{secret}"


def dismiss(store: Store, name: str) -> None:
    """Let somebody review no more; what they did stays. Raises ValueError for an unknown name."""
    _change(store, name, {"active": False})


def set_role(store: Store, name: str, role: str) -> None:
    """Raises ValueError for an unknown name or role."""
    _check_role(role)
    _change(store, name, {"role": role})


def authenticate(store: Store, token: str) -> dict | None:
    """{name, role, simulated} of whoever has this token, None for nobody."""
    name, _, secret = token.rpartition(".")
    with store.reading() as transaction:
        person = transaction.reviewer(name) if NAME.fullmatch(name) else None
    if person is None or not hmac.compare_digest(_digest(person["salt"], secret), person["digest"]):
        return None
    return {key: person[key] for key in ("name", "role", "simulated")} if person["active"] else None


def _change(store: Store, name: str, columns: dict) -> None:
    with store.writing() as transaction:
        if transaction.reviewer(name, lock=True) is None:
            raise ValueError(f"no reviewer is called {name!r}")
        transaction.change_reviewer(name, columns)


def _check_role(role: str) -> None:
    if role not in ROLES:
        raise ValueError(f"role {role!r}: expected {', '.join(ROLES)}")


def _sealed(secret: str) -> dict[str, str]:
    salt = secrets.token_hex(16)
    return {"salt": salt, "digest": _digest(salt, secret)}


def _digest(salt: str, secret: str) -> str:
    return hashlib.sha256(f"{salt}{secret}".encode(errors="replace")).hexdigest()
