"""A selected image's reasons are read back from the records."""

import shutil

import pyarrow as pa
import pytest
from click.testing import CliRunner
from small_pool import CELLS, RATES, make_pool, make_prototypes, phase, settings

from medq_ray.artifacts import MANIFEST, Run, write_json, write_table
from medq_ray.cli import main
from medq_ray.config import identity
from medq_ray.explore.why import why
from medq_ray.schema import FAILURE, POOL_IMAGE, PROTOTYPE


@pytest.fixture
def run(tmp_path) -> Run:
    """One iteration, explored."""
    own, pool = Run(tmp_path), make_pool(2000)[0]
    failures = [{"question_id": f"q{i}", "image_id": "i", "uri": "/i", "kind": "what", "modality": "mri",
                 "text": "What is wrong?", "expected": "motion", "given": "blur", "error_rate": 0.8,
                 "capabilities": [CELLS[i % 2]]} for i in range(5)]  # fmt: skip
    anchors = [row | {"members": [f"q{i}" for i in range(5)], "medoid": "m"} for row in make_prototypes().to_pylist()]
    anchors = pa.Table.from_pylist(anchors, schema=PROTOTYPE)

    def evaluated(folder) -> dict:
        write_table(folder / "failures.parquet", failures, FAILURE)
        write_table(folder / "prototypes.parquet", anchors, PROTOTYPE)
        return {}

    own.step("iter-00/evaluate", evaluated, settings={}, inputs={})
    own.step("iter-00/explore", lambda folder: phase(folder, settings(), pool, RATES, anchors=anchors),
             settings={"explore": identity(settings())["explore"]}, inputs={})  # fmt: skip
    return own


def test_a_targeted_image_has_share_prototype_failures_and_questions(run):
    rows = run.finished("iter-00/explore").table("selection").to_pylist()
    for row in rows:
        text = why(run.root, row["image_id"])
        assert f"iteration 0: {row['image_id']}" in text and text.count("asked (") == 4
        if row["strategy"] == "random":
            assert "no prototype chose it" in text
            continue
        rate = 100 * RATES[row["capability"]]["e"]
        assert f"paid for by {row['capability']}: error rate {rate:.0f} %, weight" in text
        assert f"looks like prototype {row['prototype_id']}: similarity {row['similarity']:.3f} (tau_sim = 0.6)" in text
        assert "expected 'motion', given 'blur' (wrong in 80 % of runs)" in text
        assert text.count("wrong in 80 %") == 3 and "and 2 more" in text
        first = next(line for line in text.splitlines() if "wrong in 80 %" in line)
        assert first.split(":")[0].strip() == ("q1" if row["capability"] == CELLS[1] else "q0")


def test_the_failures_are_those_of_the_checkpoint_that_served(run):
    """A second iteration, whose checkpoint was not promoted, selects by the prototypes of the first."""
    explored = run.finished("iter-00/explore")

    def again(folder) -> dict:
        shutil.copytree(explored.path, folder, dirs_exist_ok=True)
        (folder / MANIFEST).unlink()
        return {}

    def rejected(folder) -> dict:
        write_json(folder / "decision.json", {"serving": {"t": 0}})
        return {}

    run.step("iter-01/evaluate", lambda folder: {}, settings={}, inputs={})  # it has no prototypes
    run.step("iter-01/promote", rejected, settings={}, inputs={})
    run.step("iter-01/explore", again, settings=explored.manifest["identity"]["settings"], inputs={})
    rows = explored.table("selection").to_pylist()
    name = next(row["image_id"] for row in rows if row["prototype_id"] is not None)
    first, second = why(run.root, name).split("iteration 1: ")
    assert first == f"iteration 0: {second}\n" and "wrong in 80 %" in second


def test_what_was_retrieved_only_says_so_and_others_are_refused(run):
    explored = run.finished("iter-00/explore")
    selected = set(explored.table("selection")["image_id"].to_pylist())
    other = next(name for name in explored.table("retrieved")["image_id"].to_pylist() if name not in selected)
    assert "and not selected" in why(run.root, other)
    for name in ("nobody", ""):
        with pytest.raises(ValueError, match="is none of this run's .* in the 1 iterations"):
            why(run.root, name)
    known = [{"image_id": "a" * 16, "split": "dev"}, {"image_id": "b" * 16, "split": "pool"}]
    run.step("pool", lambda folder: {"n": write_table(folder / "images.parquet", known, POOL_IMAGE).num_rows},
             settings={}, inputs={})  # fmt: skip
    with pytest.raises(ValueError, match="is of split dev, whose images are never selected"):
        why(run.root, "a" * 16)
    with pytest.raises(ValueError, match="is in the pool, and was neither retrieved nor selected"):
        why(run.root, "b" * 16)
    with pytest.raises(ValueError, match="no iteration has finished exploring there; give the folder of a run"):
        why(run.root / "elsewhere", other)


def test_the_command_prints_it(run):
    name = run.finished("iter-00/explore").table("selection")["image_id"][0].as_py()
    done = CliRunner().invoke(main, ["explore", "--run-dir", str(run.root), "--why", name])
    assert done.exit_code == 0 and done.output.strip() == why(run.root, name)
