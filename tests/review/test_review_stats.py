"""Table 3, edit distances and kappas, against values worked out by hand."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score
from small_store import item

from medq_ray.intervals import wilson
from medq_ray.questions import describe
from medq_ray.review.labels import grade, meaning
from medq_ray.review.stats import agreement, distance, kappa, overview, table3

DESCRIBED = {"kind": "description", "options": []}


def pairs_of(counts: list[list[int]]) -> tuple[list[int], list[int]]:
    pairs = [(i, j) for i, row in enumerate(counts) for j, count in enumerate(row) for _ in range(count)]
    return [i for i, _ in pairs], [j for _, j in pairs]


@pytest.mark.parametrize(
    ("counts", "weighted", "expected"),
    [
        ([[20, 5], [10, 15]], False, 0.4),  # 0.7 seen, 0.5 by chance
        ([[4, 1, 0], [1, 2, 1], [0, 1, 2]], True, 1 - 4 / (184 / 12)),  # chance: (64 + 4 * 30) / 12
        ([[4, 1, 0], [1, 2, 1], [0, 1, 2]], False, (8 / 12 - 50 / 144) / (1 - 50 / 144)),
        ([[0, 3], [3, 0]], False, -1.0),
        ([[5, 0], [0, 2]], True, 1.0),
    ],
)
def test_kappa_by_hand_and_by_sklearn(counts, weighted, expected):
    first, second = pairs_of(counts)
    found = kappa(first, second, len(counts), weighted)
    assert found["kappa"] == pytest.approx(expected)
    peer = cohen_kappa_score(first, second, weights="quadratic" if weighted else None)
    assert found["kappa"] == pytest.approx(peer) and found["n"] == np.sum(counts)
    assert found["ci95"][0] - 1e-6 <= found["kappa"] <= found["ci95"][1] + 1e-6


def test_kappa_where_there_is_none():
    assert kappa([], [], 2) == {"n": 0, "kappa": None, "ci95": None}
    assert kappa([1, 1], [1, 1], 2)["kappa"] is None  # everything by chance


def test_the_interval_of_kappa_covers_the_true_one():
    """Of 200 samples of 100 pairs with kappa 0.4 about 190 intervals hold it; fewer than 180 would be a fault."""
    rng = np.random.default_rng(1)
    cells = rng.multinomial(100, [0.4, 0.1, 0.2, 0.3], 200)
    inside = 0
    for cell in cells:
        low, high = kappa(*pairs_of(cell.reshape(2, 2).tolist()), 2)["ci95"]
        inside += low <= 0.4 <= high
    assert 180 <= inside <= 199


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("", "", 0.0),
        ("a b c", "a b c", 0.0),
        ("", "a b", 1.0),
        ("a b c d", "a x c d", 1 / 4),
        ("a b c", "b c d", 2 / 3),  # one taken out, one put in
        ("a b", "a b c d", 2 / 4),
        (describe("mri", "motion", "mild"), describe("mri", "motion", "severe"), 2 / 13),  # the grade goes with it
    ],
)
def test_distance_in_words(before, after, expected):
    assert distance(before, after) == pytest.approx(expected) == distance(after, before)


def test_meaning_and_grade():
    how = {"kind": "how", "options": ["reject", "good", "usable"]}
    assert [meaning(how, label) for label in ("A", "B) good", "")] == ["reject", "good", ""]
    assert [grade("how", meant) for meant in ("reject", "good", "usable", "")] == [2, 0, 1, None]
    assert [grade("how", meant) for meant in ("none", "mild", "severe")] == [0, 1, 2]
    assert meaning(DESCRIBED, describe("ct", "metal", "mild").lower()) == "ct|metal|mild|usable"
    assert grade("description", "ct|metal|mild|usable") == 1
    assert grade("yes_no", "Yes") is None and grade("what", "none") is None


def verdict(action: str, seconds: float = 30.0, kind: str = "yes_no", before: str = "A", after: str = "") -> dict:
    return {"question_id": "q", "action": action, "seconds": seconds, "kind": kind, "before": before, "after": after}


def test_table_3_of_the_paper():
    """63 accepted, 29 edited, 8 rejected of 100 that are all reviewed, half a minute each."""
    mild, severe = (describe("mri", "motion", severity) for severity in ("mild", "severe"))
    rows = [verdict("accept")] * 63 + [verdict("edit", after="B")] * 28 + [verdict("reject")] * 8
    found = table3([*rows, verdict("edit", kind="description", before=mild, after=severe)], 100)
    assert found["verdicts"] == {"accept": 63, "edit": 29, "reject": 8}
    assert found["rates"] == {"accept": 0.63, "edit": 0.29, "reject": 0.08}
    assert found["ci95"]["accept"] == pytest.approx(wilson(0.63, 100), abs=1e-6)
    assert (found["review_rate"], found["minutes"], found["average_minutes"]) == (1.0, 50.0, 0.5)
    assert found["edit_distance"] == pytest.approx(2 / 13)  # letters are not in it


def test_agreement_by_kind():
    good, bad = "mri|none|none|good", "mri|blur|severe|reject"
    pairs = [("yes_no", "Yes", "Yes"), ("yes_no", "No", "Yes"), ("yes_no", "No", "No"), ("yes_no", "", "No"),
             ("how", "mild", "severe"), ("how", "none", "none"), ("how", "", "none"),
             ("description", good, good), ("description", bad, good)]  # fmt: skip
    found = agreement(pairs)
    assert found["pairs"] == 9 and found["agree"] == pytest.approx(4 / 9)
    assert set(found["kappa"]) == {"yes_no", "description", "grade"}
    # yes_no, of '', No, Yes: seen 2/4; by chance 1/4 * 0 + 2/4 * 2/4 + 1/4 * 2/4 = 3/8
    assert found["kappa"]["yes_no"]["kappa"] == pytest.approx((1 / 2 - 3 / 8) / (1 - 3 / 8))
    # grade: (1, 2), (0, 0), (0, 0), (2, 0): seen 1 + 4; by chance three of the second are 0, one is 2, of four
    chance = (3 * (0 * 2 + 1 * 1 + 4 * 1) + 1 * (4 * 2 + 1 * 1 + 0 * 1)) / 4
    assert found["kappa"]["grade"]["kappa"] == pytest.approx(1 - 5 / chance)
    assert agreement([])["agree"] is None and agreement([])["kappa"] == {}


def test_the_overview_counts_what_holds_and_whose_it_is(stocked, clock):
    items = [item(1, reads=2), item(2, reads=2), *(item(n) for n in range(3, 9))]
    queue = stocked(items, {"ann": "reviewer", "ben": "reviewer", "lea": "lead"})

    def give(name: str, seconds: float, action: str, **given):
        lease = queue.lease(name)
        clock.time += seconds
        act = getattr(queue, action, None) or (lambda *a, **k: queue.verdict(*a[:2], action, **k))
        act(name, lease.token, *given.pop("words", ()), seconds=seconds, **given)

    give("ann", 60, "accept")  # 1
    give("ben", 30, "accept")  # 1: they agree
    give("ann", 60, "accept")  # 2
    give("ben", 30, "edit", after="B")  # 2: they do not
    give("lea", 90, "edit", after="B")  # 2
    give("ann", 30, "reject", reason="no")  # 3
    give("ann", 30, "skip", words=("later",))  # 4
    give("ben", 60, "accept")  # 4
    give("ben", 30, "edit", after="B")  # 5
    queue.undo("ben")
    give("ben", 30, "accept")  # 5
    give("ben", 30, "flag", words=("look",))  # 6
    lease = queue.lease("ann")
    clock.time += 700
    queue.verdict("ann", lease.token, "accept", seconds=30)  # 6, late
    with queue.store.reading() as transaction:
        found = overview(transaction)
    (row,) = found["iterations"]
    assert (row["iteration"], row["items"], row["done"]) == (0, 8, 5)
    assert row["verdicts"] == {"accept": 3, "edit": 1, "reject": 1} and row["rates"]["accept"] == 3 / 5
    assert row["review_rate"] == 5 / 16  # of 16 annotations that were not dropped
    assert row["average_minutes"] == pytest.approx((60 + 90 + 30 + 60 + 30) / 5 / 60)
    assert row["minutes"] == pytest.approx((60 + 30 + 60 + 30 + 90 + 30 + 30 + 60 + 30 + 30 + 30 + 30) / 60)
    assert (row["double_reads"]["pairs"], row["double_reads"]["agree"]) == (2, 0.5)
    assert found["total"] | {"iteration": 0} == row
    ann, ben, lea = found["reviewers"]
    assert ann["verdicts"] == {"accept": 2, "edit": 0, "reject": 1}
    assert (ann["skipped"], ann["flagged"], ann["undone"], ann["late"]) == (1, 0, 0, 1)
    assert ann["average_minutes"] == pytest.approx(150 / 3 / 60)
    assert ben["verdicts"] == {"accept": 3, "edit": 1, "reject": 0}
    assert (ben["skipped"], ben["flagged"], ben["undone"], ben["late"]) == (0, 1, 1, 0)
    assert ann["double_reads"] == ben["double_reads"] == row["double_reads"]
    assert lea["verdicts"] == {"accept": 0, "edit": 1, "reject": 0} and lea["double_reads"]["pairs"] == 0
