"""A store of a few made-up items, and a clock that stands."""

from medq_ray.questions import describe
from medq_ray.review.accounts import enrol
from medq_ray.review.store import Store


class Clock:
    """Stands until it is moved."""

    def __init__(self):
        self.time = 1_000_000.0

    def __call__(self) -> float:
        return self.time


def stock(store: Store, items: list[dict], people: dict[str, str]) -> None:
    """Put `item`s and reviewers (name -> role) into a store, all of iteration 0."""
    for name, role in people.items():
        enrol(store, name, role)
    with store.writing(alone=True) as transaction:
        transaction.add_iteration(
            {"iteration": 0, "fingerprint": "f", "annotations": 2 * len(items), "closed_at": None}, items
        )


def item(number: int, *, kind: str = "yes_no", before: str = "A", reads: int = 1, patient: str = "") -> dict:
    """An item as `handover.fill` makes them: a question with options 'Yes' and 'No', severities, or a description."""
    options = {"yes_no": ["Yes", "No"], "how": ["mild", "none", "severe"], "description": []}[kind]
    question = {"question_id": f"q{number:04d}", "image_id": f"i{number:04d}", "kind": kind, "options": options}
    before = describe("mri", "motion", "severe") if kind == "description" and before == "A" else before
    return {
        "iteration": 0, "question_id": question["question_id"], "image_id": question["image_id"],
        "patient": patient or f"p{number:04d}", "kind": kind, "before": before, "priority": 1.0, "reads": reads,
        "payload": {"question": question},
    }  # fmt: skip
