"""Full-parameter supervised fine-tuning (eq. 4) with FSDP2 under Ray Train: the driver's side.

The workers' side is `medq_ray.evolve.worker`. Checkpoints of model and optimizer lie in Ray Train's storage under
`folder/scratch/<digest of all inputs>`; the same call finds the last one and goes on from there, and a call with other
inputs does not.
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

from medq_ray.artifacts import SCRATCH, digest_folder, digest_of
from medq_ray.config import Config, identity
from medq_ray.console import progress, say
from medq_ray.evolve.adapters import adapter_of
from medq_ray.evolve.dataset import read_dataset
from medq_ray.serving import EngineError, one_line

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer


def train_loop_per_worker(job: dict) -> dict:
    from medq_ray.evolve.worker import train  # torch and transformers load in the workers, not here

    return train(job)


def fine_tune(
    folder: Path, *, dataset: Path, tokens: dict[str, int], checkpoint: Path, config: Config, iteration: int
) -> dict:
    """Train `checkpoint` on a data set (`evolve.dataset`); writes checkpoint/, metrics.jsonl and tensorboard/.

    tokens: of each of its samples, by question id (`feed.measure`). metrics.jsonl has a line a step: step, epoch, loss
    (nats a sample, by `answer_loss`), grad_norm, lr, samples, tokens, answer_tokens, image_tokens, which equal inputs
    give equal; and how fast it was (`evolve.metrics`).

    A worker that dies is replaced, or done without down to `evolve.min_workers`, up to `evolve.max_failures` times.

    Returns, for this attempt: seconds in all, seconds_starting (Ray's workers, imports, checkpoints, export),
    samples_stepped (each as often as it was seen) and samples_per_second while stepping. Raises ValueError for a
    checkpoint that is missing, damaged or without adapter, a damaged data set, an unreadable image, a loss that is not
    finite, a full disk and too few CPUs or GPUs, EngineError when workers die for another reason.
    """
    from ray.train import CheckpointConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    adapter_of(checkpoint)
    _, card = read_dataset(dataset)
    started, evolve = time.perf_counter(), config.evolve
    decisive, seed = identity(config)["evolve"], [config.seed, iteration]
    name = digest_of([decisive, seed, tokens, card["digests"], digest_folder(checkpoint)])
    scratch = (folder / SCRATCH).resolve()
    for stale in scratch.glob("*"):
        if stale.name != name:
            shutil.rmtree(stale)
    for unfinished in (scratch / name).glob("saving-*"):
        shutil.rmtree(unfinished)  # of a killed run: 96 GB of an 8B model's
    (scratch / name).mkdir(parents=True, exist_ok=True)
    job = {
        "dataset": str(dataset.resolve()), "tokens": tokens, "checkpoint": str(checkpoint.resolve()),
        "settings": evolve.model_dump(mode="json"), "seed": seed, "scratch": str(scratch / name),
        "metrics": str(folder.resolve()),
    }  # fmt: skip
    # A process of 4 CPU seconds at every start, for news of a preemption that no worker of ours listens to.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    least = evolve.min_workers or evolve.workers
    check_room(least, on_gpus(config))
    trainer = TorchTrainer(
        train_loop_per_worker,
        train_loop_config=job,
        scaling_config=ScalingConfig(
            num_workers=evolve.workers if least == evolve.workers else (least, evolve.workers), use_gpu=on_gpus(config)
        ),
        run_config=RunConfig(
            name=name, storage_path=str(scratch),
            checkpoint_config=CheckpointConfig(num_to_keep=evolve.keep_checkpoints),
        ),
    )  # fmt: skip
    with watched(folder / "metrics.jsonl", len(tokens) * evolve.epochs):
        rates = run(trainer, evolve.max_failures)
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

    enough = ray.cluster_resources().get("GPU", 0) >= (config.evolve.min_workers or config.evolve.workers)
    return config.engine.device == "gpu" or (config.engine.device == "auto" and enough)


def check_room(least: int, gpus: bool) -> None:
    """Raises ValueError where a Ray of this machine's own, which does not grow, can never hold `least` workers: Ray
    Train would wait for ever."""
    import ray

    kind = "GPU" if gpus else "CPU"
    there = int(ray.cluster_resources().get(kind, 0))
    if there < least and not os.environ.get("RAY_ADDRESS"):
        raise ValueError(f"{least} workers for a fine-tuning, but Ray has {there} {kind}s here: set evolve.workers or "
                         "evolve.min_workers to what there is, or RAY_ADDRESS to a cluster")  # fmt: skip


def run(trainer: "TorchTrainer", failures: int) -> dict:
    """What rank 0 returned from the training, which goes on from its last checkpoint after up to `failures` deaths of
    workers. A worker's ValueError is raised as it was, since it would come again; EngineError for the rest."""
    from ray.exceptions import RayActorError
    from ray.train import ControllerError, WorkerGroupError

    handler, left = signal.getsignal(signal.SIGINT), failures
    try:
        while True:
            try:
                return trainer.fit().return_value
            except (ControllerError, WorkerGroupError) as error:
                if isinstance(error, WorkerGroupError):
                    causes = list(error.worker_failures.values())
                elif isinstance(error.controller_failure, RayActorError):  # one died as it was told what to train
                    causes = [error.controller_failure]
                else:
                    raise EngineError(f"training could not go on: {one_line(error)}") from error
                for cause in causes:
                    if isinstance(cause, ValueError):
                        raise cause from error
                first = one_line(next(iter(causes), error))
                if not left:
                    raise EngineError(f"a training worker died: {first}") from error
                left -= 1
                say(f"  a training worker died ({first}); going on from the last checkpoint")
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
                now = steps[-1]
                mfu = {} if now["mfu"] is None else {"MFU": f"{now['mfu']:.0%}"}
                bar.set_postfix(
                    {"loss": f"{now['loss']:.3f}", "lr": f"{now['lr']:.1e}", "norm": f"{now['grad_norm']:.2g}",
                     "token/s": f"{now['tokens_per_second']:.0f}", **mfu, "GB": f"{now['memory_bytes'] / 1e9:.1f}"},
                    refresh=False,
                )  # fmt: skip
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
