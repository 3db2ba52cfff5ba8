"""Every strategy closes the loop by one setting, and its selection says how it came about."""

import json
import shutil

import pytest
from process import medq, running_stub

from medq_ray.artifacts import read_table
from medq_ray.synthetic.world import write_world

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
SETTINGS = ["loop.max_iterations=1", "evolve.epochs=1", "evolve.workers=1", "explore.questions=seed_rule"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, 90, 5, dev_images=30, test_images=30)
    return folder


@pytest.fixture(scope="module")
def evaluated(world, tmp_path_factory):
    """A run directory with what is the same whatever the strategy is: the pool, and the evaluation of the base."""
    folder = tmp_path_factory.mktemp("evaluated")
    with running_stub() as url:
        killed = medq("manifest:iter-00/explore", world, folder, url, SETTINGS)
    assert killed.returncode == -9, killed.stdout + killed.stderr
    return folder


@pytest.mark.parametrize("strategy", ["random", "uniform_over_prototypes", "uncertainty", "coreset"])
def test_the_loop_closes_with_every_strategy(strategy, world, evaluated, tmp_path):
    for done in ("pool", "cache", "iter-00/evaluate"):
        shutil.copytree(evaluated / done, tmp_path / done)
    with running_stub() as url:
        done = medq("", world, tmp_path, url, [*SETTINGS, f"explore.strategy={strategy}"])
    assert done.returncode == 0, done.stdout + done.stderr
    selection = read_table(tmp_path / "iter-00/explore/selection.parquet")["strategy"].to_pylist()
    drawn = round(0.3 * 14)
    assert selection.count("random") == (14 if strategy == "random" else drawn)
    assert selection.count(strategy) == (14 if strategy == "random" else 14 - drawn)
    assert json.loads((tmp_path / "summary.json").read_text())["stopped"] == "max_iterations"
    assert (tmp_path / "report.html").stat().st_size > 10_000
