"""Every strategy closes the loop by one setting, and its selection says how it came about."""

import json

import pytest
from process import medq, running_stub

from medq_ray.artifacts import read_table
from medq_ray.synthetic.world import write_world

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, 90, 5, dev_images=30, test_images=30)
    return folder


@pytest.mark.parametrize("strategy", ["random", "uniform_over_prototypes", "uncertainty", "coreset"])
def test_the_loop_closes_with_every_strategy(strategy, world, tmp_path):
    with running_stub() as url:
        more = [f"explore.strategy={strategy}", "loop.max_iterations=1", "evolve.epochs=1", "explore.questions=seed_rule"]
        done = medq("", world, tmp_path, url, more)
    assert done.returncode == 0, done.stdout + done.stderr
    selection = read_table(tmp_path / "iter-00/explore/selection.parquet")["strategy"].to_pylist()
    drawn = round(0.3 * 14)
    assert selection.count("random") == (14 if strategy == "random" else drawn)
    assert selection.count(strategy) == (14 if strategy == "random" else 14 - drawn)
    assert json.loads((tmp_path / "summary.json").read_text())["stopped"] == "max_iterations"
    assert (tmp_path / "report.html").stat().st_size > 10_000
