"""Runs one `evolve` on the images of a folder in its own Ray, for the test that kills it:

    python -m tests.evolve.run_evolve IMAGES FOLDER
"""

import json
import sys
from pathlib import Path

import pyarrow as pa

from medq_ray.config import Config, Evolve
from medq_ray.evolve import evolve
from medq_ray.model.tiny import embedded_checkpoint
from medq_ray.schema import VERDICT
from tests.evolve import fake

CONFIG = Config(evolve=Evolve(learning_rate=5e-4, epochs=8, batch_size=4, tfidf_keep=100))


def run(images: list[dict], folder: Path) -> dict:
    """25 samples of 7 images, so that the last batch of an epoch leaves one of two workers without a sample."""
    tables = fake.tables(images)
    rejected = [fake.verdict(row, "reject", "") for row in tables["annotations"].to_pylist()[:3]]
    verdicts = pa.Table.from_pylist(rejected, schema=VERDICT)
    return evolve(
        folder, config=CONFIG, iteration=0, earlier=None, checkpoint=embedded_checkpoint(),
        **(tables | {"verdicts": verdicts}),
    )  # fmt: skip


if __name__ == "__main__":
    import ray

    rows, target = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    ray.init(num_cpus=4, include_dashboard=False)
    print(json.dumps(run(rows, target)))
