"""What goes into the store and what comes out of it, on both databases."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from medq_ray.artifacts import Run, write_json, write_table
from medq_ray.config import Config, Review
from medq_ray.draws import drawn
from medq_ray.review.accounts import enrol
from medq_ray.review.handover import export, fill, in_order, priorities
from medq_ray.review.queue import Queue
from medq_ray.schema import ANNOTATION, FAILURE, POOL_IMAGE, PROTOTYPE, QUESTION, SELECTION, VERDICT

CONFIG = Config(seed=3, review=Review(double_share=0.5))
ROUTES = ("cold_start", "expert", "oracle", "self", "dropped")


def run_with(folder: Path, images: int = 10, iteration: int = 0, model: str = "oracle") -> Path:
    """A run directory that has annotated: of each image one question of every route, and one audited."""
    here = folder / f"iter-{iteration:02d}"
    names = [f"i{n:03d}" for n in range(images)]
    asked = [(f"{name}-{route}", name, route) for name in names for route in (*ROUTES, "audited")]
    write_table(here / "explore/questions.parquet", [
        {"question_id": question, "image_id": name, "uri": f"/world/{name}.png", "kind": "yes_no", "text": "Impaired?",
         "modality": "mri", "options": ["Yes", "No"], "capabilities": ["modality:mri", f"cell:mri/{name}"],
         "second_id": None, "second_uri": "/world/other.png" if route == "expert" else None}
        for question, name, route in asked
    ], QUESTION)  # fmt: skip
    write_table(here / "explore/selection.parquet", [
        {"image_id": name, "patient": f"p{n // 2}" if n else "", "strategy": "failure_driven", "prototype_id": n % 3}
        for n, name in enumerate(names)
    ], SELECTION)  # fmt: skip
    failures = [{"question_id": f"f{n}", "uri": f"/dev/{n}.png", "text": "?", "expected": "Yes", "given": "No",
                 "error_rate": n / 10} for n in range(6)]  # fmt: skip
    write_table(here / "evaluate/failures.parquet", failures, FAILURE)
    write_table(here / "evaluate/prototypes.parquet",
                [{"prototype_id": 0, "members": [row["question_id"] for row in failures]},
                 {"prototype_id": 1, "members": ["f0"]}], PROTOTYPE)  # fmt: skip
    write_json(here / "evaluate/rates.json",
               {"modality:mri": {"e": 0.2}, "cell:mri/i001": {"e": 0.9}, "cell:mri/i002": {"e": None}})  # fmt: skip
    rows = [
        {"question_id": question, "image_id": name, "route": "oracle" if route == "audited" else route,
         "audit": route == "audited", "label": "A", "oracle_text": "A\0", "entropy": float("nan"), "labelled_by": model}
        for question, name, route in asked
    ]  # fmt: skip
    write_table(here / "annotate/annotations.parquet", rows, ANNOTATION)
    write_table(folder / "pool/images.parquet", [
        {"image_id": name, "source": "dicom", "licence": "not stated", "patient": f"p{name}", "session": "s", "uri": ""}
        for name in names
    ], POOL_IMAGE)  # fmt: skip
    Run(folder).step("pool", lambda _: None, settings={}, inputs={})
    for phase in ("evaluate", "explore", "annotate"):
        Run(folder).step(f"{here.name}/{phase}", lambda _: None, settings={"model": model}, inputs={})
    return folder


def stored(store, *columns) -> list[dict]:
    with store.reading() as transaction:
        return transaction.items(columns)


def test_what_needs_review_is_filled_in_once(store, tmp_path):
    run = run_with(tmp_path / "run")
    assert fill(store, run, 0, CONFIG) == {"items": 30, "added": 30}
    first = stored(store, "item_id", "question_id", "reads", "priority")
    assert fill(store, run, 0, CONFIG) == {"items": 30, "added": 0}
    assert stored(store, "item_id", "question_id", "reads", "priority") == first
    assert {row["question_id"].split("-")[1] for row in first} == {"cold_start", "expert", "audited"}
    with store.reading() as transaction:
        assert transaction.iteration(0)["annotations"] == 50  # of 60, those that were not dropped


def test_a_second_iteration_comes_after_the_first(store, tmp_path):
    run = run_with(run_with(tmp_path / "run", images=1), images=1, iteration=1)
    fill(store, run, 1, CONFIG)
    fill(store, run, 0, CONFIG)
    enrol(store, "ann", "reviewer")
    lease = Queue(store, CONFIG.review).lease("ann")
    with store.reading() as transaction:
        assert transaction.item(lease.item_id)["iteration"] == 0


def test_another_runs_annotations_are_refused(store, tmp_path):
    fill(store, run_with(tmp_path / "run"), 0, CONFIG)
    other = run_with(tmp_path / "other", model="another")
    with pytest.raises(ValueError, match="holds iteration 0 of another run than .*other: give each run a store"):
        fill(store, other, 0, CONFIG)
    with pytest.raises(ValueError, match="does not hold iteration 0 of .*other"):
        export(store, other, 0)
    with pytest.raises(ValueError, match="run: evaluate of iteration 1 is not finished"):
        fill(store, tmp_path / "run", 1, CONFIG)


def test_double_reads_are_drawn_by_name_and_seed(store, tmp_path):
    run = run_with(tmp_path / "run", images=100)
    fill(store, run, 0, CONFIG)
    twice = [row["question_id"] for row in stored(store, "question_id", "reads") if row["reads"] == 2]
    assert 120 <= len(twice) <= 180  # half of 300
    assert all(drawn("double read", f"0|{name}", 0.5, 3) for name in twice)


def test_an_item_carries_what_there_is_to_see_and_nothing_that_a_database_refuses(store, tmp_path):
    fill(store, run_with(tmp_path / "run"), 0, CONFIG)
    (row,) = [row for row in stored(store, "question_id", "patient", "payload") if row["question_id"] == "i003-expert"]
    payload = row["payload"]
    assert payload["images"] == ["/world/i003.png", "/world/other.png"] and row["patient"] == "p1"
    unseen = {"width": None, "height": None, "bits": 8, "spacing": None, "deep": False}
    assert payload["about"][0] == {"source": "dicom", "licence": "not stated"} | unseen
    assert payload["question"]["options"] == ["Yes", "No"]
    assert payload["annotation"]["oracle_text"] == "A\ufffd" and payload["annotation"]["entropy"] is None
    assert payload["selection"]["prototype_id"] == 0
    assert [failure["question_id"] for failure in payload["failures"]] == ["f5", "f4", "f3", "f2"]
    (unknown,) = [row for row in stored(store, "question_id", "patient") if row["question_id"] == "i000-expert"]
    assert unknown["patient"] == "i000"


def test_the_failures_beside_an_item_are_those_of_the_checkpoint_that_served(store, tmp_path):
    run = run_with(run_with(tmp_path / "run", images=4), images=4, iteration=1)
    for name in ("failures.parquet", "prototypes.parquet", "rates.json"):  # of a checkpoint that was not promoted
        (run / "iter-01/evaluate" / name).unlink()
    decision = {"serving": {"t": 0}}
    Run(run).step("iter-01/promote", lambda folder: write_json(folder / "decision.json", decision), settings={}, inputs={})
    fill(store, run, 1, CONFIG)
    (row,) = [row for row in stored(store, "question_id", "payload") if row["question_id"] == "i003-expert"]
    assert [failure["question_id"] for failure in row["payload"]["failures"]] == ["f5", "f4", "f3", "f2"]


def test_priority_is_weakness_and_uncertainty():
    rates = {"cell:mri/blur": {"e": 0.8}, "modality:mri": {"e": 0.3}, "kind:how": {"e": None}}
    annotations = [{"entropy": entropy} for entropy in (0.1, None, 0.5, float("nan"))]
    questions = [{"capabilities": names} for names in
                 (["cell:mri/blur", "modality:mri"], ["modality:mri"], ["kind:how"], [])]  # fmt: skip
    assert priorities(annotations, questions, rates).tolist() == pytest.approx([0.8 + 1 / 4, 0.3 + 1, 2 / 4, 1])
    assert priorities([], [], rates).tolist() == []


def test_the_order_is_by_priority_or_by_patient_with_the_most_urgent():
    rows = [("a", "p", "i", 0.1), ("b", "q", "j", 0.9), ("c", "p", "k", 1.0), ("d", "q", "j", 0.2),
            ("e", "p", "i", 0.3)]  # fmt: skip
    names = ("question_id", "patient", "image_id", "priority")
    items = [dict(zip(names, row, strict=True)) for row in rows]
    assert [item["question_id"] for item in in_order(items, together=False)] == ["c", "b", "e", "d", "a"]
    assert [item["question_id"] for item in in_order(items, together=True)] == ["c", "e", "a", "b", "d"]


def reviewed(store, run: Path, clock) -> Queue:
    """ann and ben (a program) read everything; every fifth verdict an edit, every seventh a rejection; lea rules."""
    fill(store, run, 0, CONFIG)
    for name, role in (("ann", "reviewer"), ("ben", "reviewer"), ("lea", "lead")):
        enrol(store, name, role, simulated=name == "ben")
    queue, count = Queue(store, CONFIG.review, clock), 0
    for name in ("ann", "ben", "lea"):
        while lease := queue.lease(name):
            clock.time, count = clock.time + 6, count + 1
            given = ({"action": "edit", "after": "B"} if count % 5 == 0 else
                     {"action": "reject", "reason": "no"} if count % 7 == 0 else {"action": "accept"})  # fmt: skip
            assert queue.verdict(name, lease.token, seconds=6.0, **given).counts
    return queue


def test_export_waits_until_all_is_read(store, tmp_path, clock):
    run = run_with(tmp_path / "run")
    fill(store, run, 0, CONFIG)
    with pytest.raises(ValueError, match="awaiting review: 30 items of iteration 0"):
        export(store, run, 0)
    assert not (run / "iter-00/review").exists()


def test_export_writes_what_the_simulated_expert_writes(store, tmp_path, clock):
    run = run_with(tmp_path / "run")
    queue = reviewed(store, run, clock)
    counts = export(store, run, 0, clock)
    table = pq.read_table(run / "iter-00/review/verdicts.parquet")
    assert table.schema.equals(VERDICT) and table.num_rows == 30
    rows = table.to_pylist()
    assert [row["question_id"] for row in rows] == sorted(row["question_id"] for row in rows)
    assert {row["action"]: row["after"] for row in rows} == {"accept": "A", "edit": "B", "reject": ""}
    assert all(row["before"] == "A" and row["image_id"] == row["question_id"].split("-")[0] for row in rows)
    assert {(row["reviewer"], row["simulated"]) for row in rows} <= {("ann", False), ("ben", True), ("lea", False)}
    stats = json.loads((run / "iter-00/review/stats.json").read_text())
    assert counts == {"reviewed": 30, **stats["verdicts"]} and sum(stats["verdicts"].values()) == 30
    assert stats["review_rate"] == 30 / 50 and stats["items"] == stats["done"] == 30
    assert stats["audit"]["oracle"]["seen"] == 10 and stats["audit"]["oracle"]["unseen"] == 10
    with store.reading() as transaction:
        given = transaction.events()
    assert stats["minutes"] == pytest.approx(len(given) * 6 / 60)
    assert set(stats["reviewers"]) == {row["reviewer"] for row in rows}
    assert queue.left()[0] == {"unread": 0, "second": 0, "adjudicate": 0, "done": 30, "held": 0}


def test_what_is_exported_stays_so(store, tmp_path, clock):
    run = run_with(tmp_path / "run")
    queue = reviewed(store, run, clock)
    export(store, run, 0, clock)
    before = {path.name: path.read_bytes() for path in (run / "iter-00/review").iterdir()}
    for name in ("ann", "ben"):
        with pytest.raises(ValueError, match="the review of iteration 0 is closed"):
            queue.undo(name)
    clock.time += 1000
    export(store, run, 0, clock)
    assert {path.name: path.read_bytes() for path in (run / "iter-00/review").iterdir()} == before


def test_an_iteration_without_anything_to_review_is_done_at_once(store, tmp_path):
    run = run_with(tmp_path / "run", images=0)
    assert fill(store, run, 0, CONFIG) == {"items": 0, "added": 0}
    assert export(store, run, 0) == {"reviewed": 0, "accept": 0, "edit": 0, "reject": 0}
    assert pq.read_table(run / "iter-00/review/verdicts.parquet").schema.equals(VERDICT)
