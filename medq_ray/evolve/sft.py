"""Full-parameter supervised fine-tuning (eq. 4) with FSDP2 under Ray Train: the driver's side.

The workers' side is `medq_ray.evolve.worker`. Each epoch ends with a checkpoint of model and optimizer in Ray Train's
storage under `folder/scratch/<digest of all inputs>`; the same call finds it and goes on from there, and a call with
other inputs does not.
"""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from medq_ray.artifacts import SCRATCH, digest_file, digest_folder, digest_of
from medq_ray.config import Config, identity
from medq_ray.console import progress
from medq_ray.serving import EngineError, one_line

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer


def train_loop_per_worker(job: dict) -> dict:
    from medq_ray.evolve.worker import train  # torch and transformers load in the workers, not here

    return train(job)


def fine_tune(folder: Path, *, samples: Path, checkpoint: Path, config: Config, iteration: int) -> dict:
    """Train `checkpoint` on the SAMPLE rows of `samples`; writes folder/checkpoint and folder/metrics.jsonl.

    metrics.jsonl has a line a step: step, epoch, loss (nats a sample, by `answer_loss`), answer_tokens, grad_norm, lr,
    samples. Times are not among them, since equal inputs give equal files; they are returned, for this attempt: seconds
    in all, seconds_starting (Ray's workers, imports, encoding, checkpoints, export), samples_stepped (each as often as
    it was seen) and samples_per_second while stepping.

    Raises ValueError for a missing checkpoint, a processor without chat template, an unreadable image and a loss
    that is not finite, EngineError when a worker dies for another reason.
    """
    from ray.train import CheckpointConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    if not (checkpoint / "config.json").exists():
        raise ValueError(f"checkpoint {checkpoint}: no Hugging Face checkpoint folder (config.json is missing)")
    started = time.perf_counter()
    job = {
        "samples": str(samples.resolve()),
        "checkpoint": str(checkpoint.resolve()),
        "settings": identity(config)["evolve"],
        "seed": [config.seed, iteration],
    }
    name = digest_of([job["settings"], job["seed"], digest_file(samples), digest_folder(checkpoint)])
    scratch = (folder / SCRATCH).resolve()
    for stale in scratch.glob("*"):
        if stale.name != name:
            shutil.rmtree(stale)
    job |= {"scratch": str(scratch / name), "metrics": str(folder.resolve() / "metrics.jsonl")}
    (scratch / name).mkdir(parents=True, exist_ok=True)
    trainer = TorchTrainer(
        train_loop_per_worker,
        train_loop_config=job,
        scaling_config=ScalingConfig(num_workers=config.evolve.workers, use_gpu=on_gpus(config)),
        run_config=RunConfig(name=name, storage_path=str(scratch), checkpoint_config=CheckpointConfig(num_to_keep=1)),
    )
    with watched(folder / "metrics.jsonl", pq.read_metadata(samples).num_rows * config.evolve.epochs):
        rates = run(trainer)
    publish(scratch / name / "export", folder / "checkpoint")
    seconds = time.perf_counter() - started
    return {
        "seconds": round(seconds, 1),
        "seconds_starting": round(seconds - rates["seconds_stepping"], 1),
        "samples_stepped": rates["samples_stepped"],
        "samples_per_second": round(rates["samples_stepped"] / max(rates["seconds_stepping"], 1e-9), 1),
    }


def on_gpus(config: Config) -> bool:
    """Whether each worker gets a GPU: by `engine.device`, 'auto' when Ray has enough of them."""
    import ray

    enough = ray.cluster_resources().get("GPU", 0) >= config.evolve.workers
    return config.engine.device == "gpu" or (config.engine.device == "auto" and enough)


def run(trainer: "TorchTrainer") -> dict:
    """What rank 0 returned from the training. A worker's ValueError is raised as it was, EngineError for the rest."""
    from ray.train import ControllerError, WorkerGroupError

    handler = signal.getsignal(signal.SIGINT)
    try:
        return trainer.fit().return_value
    except WorkerGroupError as error:
        for failure in error.worker_failures.values():
            if isinstance(failure, ValueError):
                raise failure from error
        first = next(iter(error.worker_failures.values()), error)
        raise EngineError(f"a training worker died: {one_line(first)}") from error
    except ControllerError as error:
        raise EngineError(f"training could not go on: {one_line(error)}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)  # fit leaves its own behind, which swallows every later Ctrl-C


@contextmanager
def watched(metrics: Path, total: int) -> Iterator[None]:
    """Show how many of `total` samples are done, by the metrics file that rank 0 writes."""
    bar, finished = progress(total, "fine-tune", unit="sample"), threading.Event()

    def watch() -> None:
        last = False
        while not last:
            last = finished.wait(0.5)
            text = metrics.read_text() if metrics.exists() else ""
            steps = [json.loads(line) for line in text.splitlines(True) if line.endswith("\n")]
            if steps:
                bar.set_postfix({"loss": f"{steps[-1]['loss']:.3f}"}, refresh=False)
            bar.update(sum(step["samples"] for step in steps) - bar.n)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        finished.set()
        watcher.join()
        bar.close()


def publish(export: Path, target: Path) -> None:
    """Move the exported checkpoint to its place, over what a killed run may have left there."""
    if target.exists():
        shutil.rmtree(target)
    os.replace(export, target)
