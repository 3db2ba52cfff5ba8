"""A checkpoint serves only if dev does not show a loss against the one that serves; the loop goes on from the better.

The loop's own code runs here, with phases and models in its place that take no time: what is wired to what is looked at,
and what a kill leaves.
"""

import json
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import yaml
from click.testing import CliRunner

from medq_ray import cli, loop, models, promotion, recipes
from medq_ray.artifacts import Run, read_json, write_json, write_table
from medq_ray.config import override
from medq_ray.evaluate.compare import compare
from medq_ray.model.tiny import embedded_checkpoint
from medq_ray.promotion import MARK, checkpoint_to_serve, decide
from medq_ray.schema import ANNOTATION, FAILURE, POOL_IMAGE, PROTOTYPE, QUESTION, SAMPLE, SCORE, SELECTION, VERDICT
from medq_ray.synthetic.world import write_world

RUNS = 5


def scores(right: list[int | None], capability: str = "modality:mri") -> pa.Table:
    """schema.SCORE of a question for each number, that of its right runs; None: the endpoint gave no answer."""
    rows = [
        {"question_id": f"q{i:04d}", "kind": "what", "modality": "mri", "patient": f"p{i // 3}",
         "capabilities": [capability, f"end:{i % 10}"], "right": [None if n is None else run < n for run in range(RUNS)],
         "wrong": 0 if n is None else RUNS - n, "unparsed": 0, "failed": RUNS if n is None else 0,
         "error_rate": None if n is None else 1 - n / RUNS, "failure": n == 0}
        for i, n in enumerate(right)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=SCORE)


def decided(before: list, after: list) -> dict:
    return decide(compare(scores(before), scores(after)), 0, 1)


@pytest.mark.parametrize("seed", range(20))
def test_of_two_checkpoints_the_worse_never_replaces_the_better(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 60))
    one, other = (rng.integers(0, RUNS + 1, n).tolist() for _ in range(2))
    there, back = decided(one, other), decided(other, one)
    assert there["promoted"] == (sum(other) >= sum(one)) and back["promoted"] == (sum(one) >= sum(other))
    assert there["serving"]["t"] == there["promoted"] and there["against"] == {"t": 0, "checkpoint": "base"}
    assert decided(one, one)["promoted"] and decided(one, one)["difference"] == 0


def test_small_losses_do_not_add_up():
    """Sixty fine-tunings that each move ten of 450 questions at random: none is proven worse than the last."""
    rng = np.random.default_rng(0)
    serving, held, unheld = [2] * 450, 0, [2] * 450
    for t in range(1, 60):
        new, drifted = list(serving), list(unheld)
        for table in (new, drifted):
            for i in rng.choice(450, 10, replace=False):
                table[i] = int(np.clip(table[i] + rng.choice([-2, -1, 1]), 0, RUNS))
        assert compare(scores(unheld), scores(drifted))["ci95"][1] > 0  # a rule that asks for proof takes every one
        unheld = drifted
        if decide(compare(scores(serving), scores(new)), held, t)["promoted"]:
            assert sum(new) >= sum(serving)
            serving, held = new, t
    assert sum(serving) >= 2 * 450 > 1.1 * sum(unheld)


def test_one_answer_decides_and_the_decision_says_what_it_is_worth():
    worse = decided([3] * 30, [3] * 29 + [2])
    assert not worse["promoted"] and worse["ci95"][0] < 0 < worse["ci95"][1]
    assert worse["why"].startswith("not promoted: dev -0.67 points [") and "may be chance" in worse["why"]
    assert worse["why"].endswith("the base goes on serving") and "(30 questions, 0 answered better and 1 worse)" in worse["why"]
    sure = decided([5] * 300, [0] * 150 + [5] * 150)
    assert "chance" not in sure["why"].partition(";")[0] and sure["ci95"][1] < 0
    assert "-0.00" not in decided([3] * 3, [3] * 3)["why"]
    later = decide(compare(scores([1] * 9), scores([0] * 9)), 2, 4)
    assert later["checkpoint"] == "iter-03/evolve/checkpoint" and later["why"].endswith("iteration 2 goes on serving")
    assert later["serving"] == later["against"] == {"t": 2, "checkpoint": "iter-01/evolve/checkpoint"}


def test_a_capability_that_fell_is_named_and_does_not_stop_what_rose():
    after = [0 if i % 10 == 7 else 5 for i in range(300)]
    found = decided([5 if i % 10 == 7 else 3 for i in range(300)], after)
    assert found["promoted"] and found["moved"]["down"] == ["end:7"] and "modality:mri" in found["moved"]["up"]
    assert "capabilities that fell by McNemar's test: end:7" in found["why"]


def test_questions_without_an_answer_count_for_neither_and_are_told():
    found = decided([3, 3, 5], [3, 3, None])
    assert found["promoted"] and found["difference"] == 0 and "left out for want of an answer: 1" in found["why"]


# The loop, with phases that take no time.


class Killed(BaseException):
    """As a kill leaves things: nothing is cleaned up or caught."""


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, 30, 5, dev_images=10, test_images=10)
    return folder


class Phases:
    """Phases that write the least that the loop reads, of checkpoints with known numbers of right answers on dev, and
    remember what they were given."""

    def __init__(self, monkeypatch, right: list[int]):
        self.right, self.running, self.calls = right, [], []
        self.killing = ""
        pooled = SimpleNamespace(rows=lambda: None, embedded=lambda names: None, search=None, vectors=None, fetch=None)
        for name, stand_in in {
            "ray_session": lambda log: nullcontext(), "quiet": lambda log: nullcontext(), "open_pool": lambda own: pooled,
            "text_embedder": lambda *_: None, "check_use": lambda *_: None, "with_pictures": lambda *_: None,
            "reviewable": lambda images, *_: images, "prepare": self.prepare, "evaluate": self.evaluate,
            "explore": self.explore, "annotate": self.annotate, "evolve": self.evolve,
        }.items():  # fmt: skip
            monkeypatch.setattr(loop, name, stand_in)
        monkeypatch.setattr(loop.simulated, "review", self.review)
        monkeypatch.setattr(models.Models, "checkpoint", self.checkpoint)
        monkeypatch.setattr(models.Models, "oracle", lambda *_: None)
        monkeypatch.setattr(promotion, "write_json", self.write_json)

    def at(self, place: str) -> None:
        if place == self.killing:
            self.killing = ""
            raise Killed

    @contextmanager
    def server(self, t: int, folder: Path):
        self.running.append(t)
        try:
            yield t, folder
        finally:
            self.running.remove(t)

    def checkpoint(self, t: int, folder: Path, servers: models.Servers):
        """Asking it tells who answers: (iteration, folder) of the one checkpoint that is being served."""
        def answer() -> tuple[int, Path]:
            found = servers.once("model", lambda: servers.enter_context(self.server(t, folder)))
            assert self.running == [t] and found == (t, folder)
            return found
        return answer

    def write_json(self, path: Path, data) -> None:
        write_json(path, data)
        self.at(f"{path.parent.parent.name}/promote")

    def prepare(self, folder: Path, *, world, **_) -> dict:
        write_table(folder / "images.parquet", [{"image_id": "i", "split": "pool"}], POOL_IMAGE)
        return {}

    def evaluate(self, folder: Path, *, answer, **_) -> dict:
        t, served = answer()
        right = [RUNS if i < self.right[t] else 0 for i in range(100)]
        for name in ("scores", "test_scores"):
            write_table(folder / f"{name}.parquet", scores(right), SCORE)
        write_table(folder / "prototypes.parquet", [{"prototype_id": t}], PROTOTYPE)
        write_table(folder / "failures.parquet", [], FAILURE)
        write_json(folder / "rates.json", {})
        write_json(folder / "metrics.json", {split: {"accuracy": self.right[t] / 100} for split in ("dev", "test")})
        self.calls.append(("evaluate", t, served))
        return {}

    def explore(self, folder: Path, *, iteration, prototypes, ask_self, taken, **_) -> dict:
        self.at(f"iter-{iteration:02d}/explore")
        self.calls.append(("explore", iteration, prototypes["prototype_id"][0].as_py(), ask_self(), sorted(taken)))
        write_table(folder / "selection.parquet", [{"image_id": f"x{iteration}"}], SELECTION)
        write_table(folder / "questions.parquet", [{"question_id": f"x{iteration}"}], QUESTION)
        return {}

    def annotate(self, folder: Path, *, iteration, ask_self, **_) -> dict:
        self.calls.append(("annotate", iteration, ask_self()))
        write_table(folder / "annotations.parquet", [{"question_id": f"x{iteration}"}], ANNOTATION)
        write_json(folder / "routes.json", {"routes": {}})
        return {}

    def review(self, folder: Path, **_) -> dict:
        write_table(folder / "verdicts.parquet", [], VERDICT)
        write_json(folder / "stats.json", {"minutes": 0, "simulated": True, "verdicts": {}})
        return {}

    def evolve(self, folder: Path, *, iteration, earlier, checkpoint, **_) -> dict:
        self.calls.append(("evolve", iteration, checkpoint, earlier["question_id"].to_pylist() if earlier else []))
        write_table(folder / "new.parquet", [{"question_id": f"x{iteration}"}], SAMPLE)
        write_json(folder / "checkpoint" / "config.json", {"t": iteration + 1})
        return {"trained_on": iteration + 1}

    def of(self, phase: str) -> list[tuple]:
        return [call[1:] for call in self.calls if call[0] == phase]


def settings(world: Path, *more: str):
    return override(recipes.build("demo"), [f"world.path={world}", "encoder.name=embedded", *more])


def manifests(run_dir: Path) -> dict[str, tuple]:
    found = {str(path.parent.relative_to(run_dir)): read_json(path) for path in run_dir.rglob("MANIFEST.json")}
    return {name: (manifest["fingerprint"], manifest["identity"], manifest["files"]) for name, manifest in found.items()}


def inputs(run_dir: Path, step: str) -> dict:
    return manifests(run_dir)[step][1]["inputs"]


def fingerprint(run_dir: Path, step: str) -> str:
    return manifests(run_dir)[step][0]


def test_a_worse_checkpoint_is_kept_and_marked_and_the_loop_goes_on_from_the_better(world, tmp_path, monkeypatch):
    phases, root, base = Phases(monkeypatch, [60, 50, 70, 65]), tmp_path / "r", embedded_checkpoint()
    tables = []
    summary = loop.run(settings(world, "loop.max_iterations=3"), root, after=lambda found: tables.append(found["serving"]))
    second = root / "iter-01/evolve/checkpoint"
    assert [t for t, _ in phases.of("evaluate")] == [0, 1, 2, 3]
    # iteration 1 goes on from the base: its failures, its answers, its weights; what was selected stays taken
    assert phases.of("explore") == [(0, 0, (0, base), []), (1, 0, (0, base), ["x0"]), (2, 2, (2, second), ["x0", "x1"])]
    assert phases.of("annotate") == [(0, (0, base)), (1, (0, base)), (2, (2, second))]
    # and the labels of the turn before are trained on again
    assert phases.of("evolve") == [(0, base, []), (1, base, ["x0"]), (2, second, ["x0", "x1"])]
    # every step names what it came from
    origin = inputs(root, "iter-00/evaluate")["checkpoint"]
    assert inputs(root, "iter-01/explore")["evaluate"] == fingerprint(root, "iter-00/evaluate")
    assert inputs(root, "iter-01/evolve") == {"review": fingerprint(root, "iter-01/review"), "checkpoint": origin,
                                              "iter-00": fingerprint(root, "iter-00/evolve")}  # fmt: skip
    assert inputs(root, "iter-02/evaluate")["checkpoint"] == fingerprint(root, "iter-01/evolve")
    assert inputs(root, "iter-02/evolve") == {"review": fingerprint(root, "iter-02/review"),
                                              "checkpoint": fingerprint(root, "iter-01/evolve")}  # fmt: skip
    # a program and a person find it
    decisions = [row["promotion"] and row["promotion"]["promoted"] for row in summary["iterations"]]
    assert decisions == [None, False, True, False]
    assert tables == [{"t": 0, "checkpoint": "base"}] * 2 + [{"t": 2, "checkpoint": "iter-01/evolve/checkpoint"}] * 2
    assert summary["serving"] == tables[-1] and read_json(root / "summary.json") == json.loads(json.dumps(summary))
    assert summary["comparison"]["base_to_serving"]["difference"] == 0.1
    assert summary["comparison"]["base_to_last"]["difference"] == 0.05
    for t, was in ((0, False), (1, True), (2, False)):
        mark = root / f"iter-{t:02d}/evolve" / MARK
        assert mark.exists() != was and (root / f"iter-{t:02d}/evolve/checkpoint/config.json").exists()
    assert (root / "iter-00/evolve" / MARK).read_text().strip() == summary["iterations"][1]["promotion"]["why"]
    assert checkpoint_to_serve(str(root)) == second


@pytest.mark.parametrize("place", ["iter-01/promote", "iter-01/explore", "iter-02/promote"])
def test_a_run_killed_around_a_decision_decides_the_same(world, tmp_path, monkeypatch, place):
    phases, chosen = Phases(monkeypatch, [60, 50, 70]), settings(world)
    expected = loop.run(chosen, tmp_path / "unbroken")
    evaluated, phases.killing = len(phases.of("evaluate")), place
    with pytest.raises(Killed):
        loop.run(chosen, tmp_path / "broken")
    found = loop.run(chosen, tmp_path / "broken")
    assert len(phases.of("evaluate")) == 2 * evaluated and phases.running == []
    assert manifests(tmp_path / "broken") == manifests(tmp_path / "unbroken")
    promotions, others = ([row["promotion"] for row in run["iterations"]] for run in (found, expected))
    assert promotions == others and found["serving"] == expected["serving"]
    assert loop.run(chosen, tmp_path / "broken")["iterations"] == found["iterations"]  # a finished one stays as it is


@pytest.mark.parametrize(
    ("right", "patience", "last", "serving"),
    [
        ([60, 50, 70], 1, 1, 0),  # as soon as one does not rise
        ([60, 60, 70], 1, 1, 1),  # a tie is promoted, and no rise
        ([60, 50, 59, 99], 2, 2, 0),
        ([60, 50, 70, 69, 70, 99], 2, 4, 4),  # a rise in between starts the count anew
        ([60, 50, 40, 30, 20, 10], 9, 5, 0),
    ],
)
def test_the_loop_stops_when_patience_has_run_out(world, tmp_path, monkeypatch, right, patience, last, serving):
    phases = Phases(monkeypatch, right)
    summary = loop.run(settings(world, f"loop.patience={patience}", "loop.max_iterations=5"), tmp_path)
    assert len(phases.of("evaluate")) == last + 1 and len(phases.of("evolve")) == last
    assert summary["serving"]["t"] == serving and summary["stopped"] == ("max_iterations" if last == 5 else "plateau")


def test_without_a_loss_every_step_comes_from_the_one_before(world, tmp_path, monkeypatch):
    phases = Phases(monkeypatch, [60, 65, 70])
    loop.run(settings(world), tmp_path)
    first = tmp_path / "iter-00/evolve/checkpoint"
    assert phases.of("explore")[1] == (1, 1, (1, first), ["x0"]) and phases.of("evolve")[1] == (1, first, ["x0"])
    assert inputs(tmp_path, "iter-01/evolve") == {"review": fingerprint(tmp_path, "iter-01/review"),
                                                  "checkpoint": fingerprint(tmp_path, "iter-00/evolve")}  # fmt: skip
    assert not list(tmp_path.rglob(MARK))


def test_fine_tunings_from_the_base_start_there_whatever_serves(world, tmp_path, monkeypatch):
    phases = Phases(monkeypatch, [60, 65, 50, 70])
    loop.run(settings(world, "evolve.start_from=base", "loop.max_iterations=3"), tmp_path)
    assert {checkpoint for _, checkpoint, _ in phases.of("evolve")} == {embedded_checkpoint()}
    assert [asked for *_, asked, _ in phases.of("explore")][2] == (1, tmp_path / "iter-00/evolve/checkpoint")


# What serves from a run directory.


def run_with(folder: Path, served: list[int], checkpoint: str = "embedded") -> Path:
    """The least of a run directory: what served after each comparison, and two checkpoints."""
    for t in (0, 1):
        write_json(folder / f"iter-{t:02d}/evolve/checkpoint/config.json", {})
    (folder / "run.yaml").write_text(yaml.safe_dump({"engine": {"checkpoint": checkpoint}}))
    for t, serving in enumerate(served, 1):
        decision = {"serving": {"t": serving}}
        Run(folder).step(f"iter-{t:02d}/promote", lambda path: write_json(path / "decision.json", decision),
                         settings={}, inputs={})  # fmt: skip
    return folder


@pytest.mark.parametrize(("served", "expected"), [([], None), ([0], None), ([1], 0), ([1, 1], 0), ([0, 2], 1), ([1, 2], 1)])
def test_the_checkpoint_that_serves_is_taken_from_a_run_directory(tmp_path, capsys, served, expected):
    """Also before the iteration has ended, and from the last decision only."""
    own = run_with(tmp_path / "own", served)
    name = "base" if expected is None else f"iter-{expected:02d}/evolve/checkpoint"
    assert checkpoint_to_serve(str(own)) == (embedded_checkpoint() if expected is None else own / name)
    assert f"{name} serves" in capsys.readouterr().out
    again = run_with(tmp_path / "again", [0], checkpoint=str(own / "iter-00/evolve/checkpoint"))
    assert checkpoint_to_serve(str(again)) == own / "iter-00/evolve/checkpoint"


def test_one_that_was_not_promoted_is_served_with_a_warning(tmp_path, capsys):
    folder = run_with(tmp_path, [0]) / "iter-00/evolve/checkpoint"
    folder.with_name(MARK).write_text("not promoted: dev -3.00 points\n")
    assert checkpoint_to_serve(str(folder)) == folder
    assert capsys.readouterr().out == f"warning: {folder} was not promoted: dev -3.00 points\n"
    assert checkpoint_to_serve("embedded") == embedded_checkpoint() and capsys.readouterr().out == ""


def test_the_command_and_the_app_serve_it(tmp_path, monkeypatch):
    from serve_apps import vlm

    own = run_with(tmp_path, [1])
    served = []
    monkeypatch.setattr("medq_ray.model.deploy.serve_forever", lambda folder, *_: served.append(folder))
    monkeypatch.setattr(vlm, "build", lambda folder, *_: served.append(folder))
    assert CliRunner().invoke(cli.main, ["serve", "vlm", "--checkpoint", str(own)]).exit_code == 0
    vlm.build_app({"checkpoint": str(own)})
    assert served == [own / "iter-00/evolve/checkpoint"] * 2
