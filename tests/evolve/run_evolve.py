"""Runs one `evolve` on the images of a folder in its own Ray, for the tests that kill it:

    python -m tests.evolve.run_evolve IMAGES FOLDER [section.field=value ...]
    python -m tests.evolve.run_evolve IMAGES FOLDER --nodes ...     on two nodes; the second dies after the first epoch
"""

import json
import shutil
import sys
import threading
import time
from pathlib import Path

import psutil
import pyarrow as pa

from medq_ray.artifacts import SCRATCH
from medq_ray.config import Config, Evolve, override
from medq_ray.evolve import evolve
from medq_ray.model.tiny import embedded_checkpoint
from medq_ray.schema import VERDICT
from tests.evolve import fake

CONFIG = Config(evolve=Evolve(learning_rate=5e-4, epochs=4, batch_size=4, tfidf_keep=100, max_tokens=110,
                              activation_checkpointing=False))  # fmt: skip
"""Rows of at most two short samples, so that a step is of one row or of two and workers have unequal numbers of them."""
STEPS_AN_EPOCH = 7
TIMES = {"seconds", "samples_per_second", "tokens_per_second", "mfu", "memory_bytes"}


def run(images: list[dict], folder: Path, config: Config = CONFIG, checkpoint: Path | None = None) -> dict:
    """25 samples of 7 images, so that the last batch of an epoch leaves one of two workers without a sample."""
    tables = fake.tables(images)
    rejected = [fake.verdict(row, "reject", "") for row in tables["annotations"].to_pylist()[:3]]
    verdicts = pa.Table.from_pylist(rejected, schema=VERDICT)
    counts = evolve(
        folder, config=config, iteration=0, earlier=None, checkpoint=checkpoint or embedded_checkpoint(),
        **(tables | {"verdicts": verdicts}),
    )  # fmt: skip
    shutil.rmtree(folder / SCRATCH)  # as `Run.step` does
    return counts


def steps(folder: Path) -> list[dict]:
    """Lines of its metrics.jsonl that are whole."""
    path = folder / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(True) if line.endswith("\n")]


def timeless(folder: Path) -> list[dict]:
    """The same without how fast they were."""
    return [{name: value for name, value in step.items() if name not in TIMES} for step in steps(folder)]


def kept(folder: Path) -> bool:
    """Whether Ray Train has a checkpoint to go on from: until its controller asks the workers again, what they have
    saved counts for nothing."""
    return any(folder.glob("scratch/*/checkpoint_manager_snapshot.json"))


def lose_a_node(folder: Path) -> None:
    """Start a cluster of two nodes with room for one worker each; the second dies when an epoch's checkpoint is kept
    and the next epoch has begun. All of its processes are killed at once, as a machine dies: without their raylet,
    workers would live for some steps yet."""
    import ray
    from ray.cluster_utils import Cluster

    impatient = {"health_check_period_ms": 500, "health_check_failure_threshold": 2}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "_system_config": impatient},
    )
    second = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address)

    def watch() -> None:
        while not kept(folder) or len(steps(folder)) <= STEPS_AN_EPOCH:
            time.sleep(0.02)
        raylet = psutil.Process(second.all_processes["raylet"][0].process.pid)
        for process in [raylet, *raylet.children(recursive=True)]:
            process.kill()

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    import ray

    rows, target = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    changes = [argument for argument in sys.argv[3:] if argument != "--nodes"]
    if "--nodes" in sys.argv:
        lose_a_node(target)
    else:
        ray.init(address="local", num_cpus=4, include_dashboard=False)
    print(json.dumps(run(rows, target, override(CONFIG, changes))), flush=True)
    ray.shutdown()
