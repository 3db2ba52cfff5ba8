"""Kill the driver in every phase; the same command finishes, asks nothing twice, and ends with the same files.

A stub endpoint over HTTP stands in for vLLM (its answers do not depend on batch composition); Ray, the simulated
oracle and FSDP2 training are real. As the first fine-tuned checkpoint it answers worse than as any other, so that one is
not promoted and the second turn goes on from the base. The unbroken run goes on beside the one that is killed, since
both wait half of the time.
"""

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from process import medq, running_stub

from medq_ray.artifacts import read_table
from medq_ray.ledger import Ledger
from medq_ray.promotion import MARK
from medq_ray.synthetic.world import write_world
from tests.evolve.run_evolve import timeless

PLACES = [
    "manifest:pool",
    "answers:model-00:60",
    "manifest:iter-00/evaluate",
    "answers:oracle:15",
    "manifest:iter-00/explore",
    "lines:iter-00/evolve/metrics.jsonl:2",
    "answers:model-01:10",
    "manifest:iter-01/promote",
    "manifest:iter-01/annotate",
    "manifest:iter-01/evolve",
]
TOKENS = 500
"""More than one request of these has, answers and the words for the oracle included."""
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]


def state(url: str) -> dict:
    """What the stub saw: 'answered' counts of 'image|prompt', 'keys' that were sent."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/counts") as response:
        return json.load(response)


def tokens(run_dir: Path) -> dict[str, float]:
    """The bill of a run, without its seconds."""
    return {what: amount for what, amount in Ledger(run_dir / "ledger.jsonl").total().items() if "tokens" in what}


def result_files(run_dir: Path) -> dict[str, object]:
    """Step file -> digest, from the manifests; of a training's metrics what no clock decides."""
    files = {}
    for manifest in run_dir.rglob("MANIFEST.json"):
        step = str(manifest.parent.relative_to(run_dir))
        for name, digest in json.loads(manifest.read_text())["files"].items():
            if not name.startswith("tensorboard/"):
                files[f"{step}/{name}"] = timeless(manifest.parent) if name == "metrics.jsonl" else digest
    return files


def test_a_run_killed_in_every_phase_ends_like_an_unbroken_one(tmp_path):
    world = tmp_path / "world"
    write_world(world, 90, 5, dev_images=30, test_images=30)
    worse = ("--worse", "iteration-1")
    with running_stub(*worse) as unbroken, running_stub(*worse) as broken, ThreadPoolExecutor(1) as beside:
        whole = beside.submit(medq, "", world, tmp_path / "unbroken", unbroken)
        for place in PLACES:
            killed = medq(place, world, tmp_path / "broken", broken)
            assert killed.returncode == -9, f"not killed at {place}: {killed.stdout}{killed.stderr}"
        finished = medq("", world, tmp_path / "broken", broken)
        for done in (whole.result(), finished):
            assert done.returncode == 0, done.stdout + done.stderr
        asked_once, asked_again = (state(url)["answered"] for url in (unbroken, broken))
        assert state(unbroken)["keys"] == ["Bearer none"]  # the oracle's key is not the model's

    expected, found = result_files(tmp_path / "unbroken"), result_files(tmp_path / "broken")
    assert {"iter-01/evolve/checkpoint/model.safetensors", "iter-02/evaluate/metrics.json"} <= set(expected)
    assert found == expected
    # A request in flight at a kill was never received and is asked again: at most 48 are, at each of the kills.
    assert set(asked_again) == set(asked_once)
    repeated = sum(asked_again[key] - asked_once[key] for key in asked_once)
    assert 0 <= repeated <= 48 * sum(place.startswith("answers:model") for place in PLACES)
    # The bill says so: no less than the unbroken run's, and no more than what was asked again and a look at each start.
    once, again = tokens(tmp_path / "unbroken"), tokens(tmp_path / "broken")
    assert once.keys() == again.keys() and len(once) == 4
    for what, amount in once.items():
        assert amount <= again[what] <= amount + TOKENS * 48 * len(PLACES), what
    assert "done before" in finished.stdout
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("unbroken", "broken")]
    assert summaries[0]["comparison"] == summaries[1]["comparison"]
    promotions = [[row["promotion"] for row in summary["iterations"]] for summary in summaries]
    assert promotions[0] == promotions[1] and [row and row["promoted"] for row in promotions[0]] == [None, False, True]
    assert summaries[0]["serving"] == summaries[1]["serving"] == {"t": 2, "checkpoint": "iter-01/evolve/checkpoint"}
    annotated = read_table(tmp_path / "broken/iter-01/annotate/annotations.parquet")
    assert set(annotated["self_model"].to_pylist()) == {"iteration-0"}  # the base annotates, which goes on serving
    assert (tmp_path / "broken/iter-00/evolve" / MARK).exists()
    assert 'class="cross dev"' in (tmp_path / "broken/report.html").read_text()
