"""Names, roles and tokens."""

import pytest

from medq_ray.review.accounts import authenticate, dismiss, enrol, new_token, set_role


def test_a_token_lets_in_and_is_kept_nowhere(store):
    token = enrol(store, "ann b", "reviewer")
    assert authenticate(store, token) == {"name": "ann b", "role": "reviewer", "simulated": False}
    secret = token.removeprefix("ann b.")
    assert len(secret) == 43  # 256 bits
    with store.reading() as transaction:
        assert secret not in repr(transaction.reviewers())


def test_no_other_token_lets_in(store):
    token = enrol(store, "ann", "reviewer")
    other = enrol(store, "ben", "reviewer")
    swapped = "ann." + other.removeprefix("ben.")
    near = (token[:-1], token + "x", token.upper(), swapped)
    for wrong in (*near, "", ".", "ann", "ann.", "\0.\ud800", "eve.x", "' OR 1=1"):
        assert authenticate(store, wrong) is None


def test_a_new_token_ends_the_old_one_and_brings_back(store):
    old = enrol(store, "ann", "reviewer")
    new = new_token(store, "ann")
    assert authenticate(store, old) is None and authenticate(store, new)["name"] == "ann"
    dismiss(store, "ann")
    assert authenticate(store, new) is None
    assert authenticate(store, new_token(store, "ann"))["role"] == "reviewer"


def test_roles_can_be_changed(store):
    token = enrol(store, "ann", "reviewer", simulated=True)
    set_role(store, "ann", "lead")
    assert authenticate(store, token) == {"name": "ann", "role": "lead", "simulated": True}


@pytest.mark.parametrize("name", ["", "a.b", "<b>", "a\nb", " ann", "ann ", "x" * 65, "\u00e4nn"])
def test_a_name_that_a_token_or_a_page_cannot_carry_is_refused(store, name):
    with pytest.raises(ValueError, match="expected 1 to 64 letters, digits"):
        enrol(store, name, "reviewer")


def test_mistakes_are_one_line(store):
    enrol(store, "ann", "reviewer")
    with pytest.raises(ValueError, match="'ann' is enrolled already"):
        enrol(store, "ann", "lead")
    with pytest.raises(ValueError, match="role 'boss': expected reviewer, lead, admin"):
        enrol(store, "ben", "boss")
    for act in (new_token, dismiss):
        with pytest.raises(ValueError, match="no reviewer is called 'ben'"):
            act(store, "ben")
