"""Every strategy closes the loop by one setting, and its selection says how it came about."""

import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from process import medq, running_stub

from medq_ray.artifacts import read_table
from medq_ray.synthetic.world import write_world

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]
STRATEGIES = ("random", "uniform_over_prototypes", "uncertainty", "coreset")
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


@pytest.fixture(scope="module")
def loops(world, evaluated, tmp_path_factory):
    """Strategy -> (its loop as a process that has ended, the run directory); two at a time, since they wait a lot."""

    def loop(strategy: str) -> tuple[subprocess.CompletedProcess, Path]:
        folder = folders[strategy]
        for done in ("pool", "cache", "iter-00/evaluate"):
            shutil.copytree(evaluated / done, folder / done)
        with running_stub() as url:
            return medq("", world, folder, url, [*SETTINGS, f"explore.strategy={strategy}"]), folder

    folders = {strategy: tmp_path_factory.mktemp(strategy) for strategy in STRATEGIES}
    with ThreadPoolExecutor(2) as both:
        return dict(zip(STRATEGIES, both.map(loop, STRATEGIES), strict=True))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_loop_closes_with_every_strategy(strategy, loops):
    done, folder = loops[strategy]
    assert done.returncode == 0, done.stdout + done.stderr
    selection = read_table(folder / "iter-00/explore/selection.parquet")["strategy"].to_pylist()
    drawn = round(0.3 * 14)
    assert selection.count("random") == (14 if strategy == "random" else drawn)
    assert selection.count(strategy) == (14 if strategy == "random" else 14 - drawn)
    assert json.loads((folder / "summary.json").read_text())["stopped"] == "max_iterations"
    assert (folder / "report.html").stat().st_size > 10_000
