"""Trains the embedded models from scratch: `python -m medq_ray.model.assets.train encoder`, then `vlm`, whose vision
tower is the encoder's. `--seed S`, `--out DIR`, `--encoder DIR`.

Draws synthetic images into a scratch folder, trains in two processes, writes the weights and prints how the result
does on held-out images. README.md in this folder has the figures of the shipped weights.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from torch import distributed

from medq_ray.model import tiny
from medq_ray.model.assets import corpus, train_encoder, train_vlm
from medq_ray.model.assets.optimise import in_processes
from medq_ray.model.encoder import load_encoder

PLANS = {
    "everyday": corpus.everyday_plan(32_000),
    "specific": corpus.specific_plan(36_000),
    "balanced": corpus.balanced_plan(900),
    "retrieval": corpus.retrieval_plan(each=55, common=2850),
}
NEEDED = {"vlm": ("everyday", "balanced"), "encoder": ("everyday", "specific", "retrieval")}
CONTRAST, READ, ANSWER = 3600, 500, 2600
"""Steps."""
ENCODER = Path(__file__).parent / "encoder"


def images_of(scratch: Path, name: str) -> np.ndarray:
    return np.load(scratch / f"{name}.npy", mmap_mode="r")


def vlm(scratch: Path, out: Path, seed: int, tower: Path) -> None:
    """One process of the base model's training; the first writes and reports."""
    images = images_of(scratch, "everyday")
    model, processor, turns = train_vlm.train(images, PLANS["everyday"], tower, (READ, ANSWER), seed)
    if distributed.get_rank() == 0:
        tiny.save(model, processor, out)
        (out / "model.safetensors").chmod(0o644)
        held_out = images_of(scratch, "balanced")
        print(train_vlm.table(train_vlm.verdicts(model, turns, held_out, PLANS["balanced"])))


def encoder(scratch: Path, out: Path, seed: int) -> None:
    """One process of the encoder's training; the first writes and reports."""
    pools = [(images_of(scratch, name), PLANS[name]) for name in ("everyday", "specific")]
    model = train_encoder.train(pools, out, CONTRAST, seed)
    if distributed.get_rank() == 0:
        train_encoder.save(model, out)
        found = load_encoder(f"local-dir:{out}")
        print(train_encoder.retrieval(found, images_of(scratch, "retrieval"), PLANS["retrieval"], each=50, rare=10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=("vlm", "encoder"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="folder of the weights (default: the shipped one)")
    parser.add_argument("--encoder", type=Path, default=ENCODER, help="vlm: whose vision tower to start from")
    parser.add_argument("--scratch", type=Path, default=None, help="folder that keeps the drawn images between calls")
    arguments = parser.parse_args()
    out = arguments.out or Path(__file__).parent / arguments.model
    started = time.time()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = arguments.scratch or Path(temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        for name in NEEDED[arguments.model]:
            corpus.draw_missing(PLANS[name], scratch / f"{name}.npy")
        if arguments.model == "encoder":
            train_encoder.write_folder(out)
            in_processes(encoder, scratch, out, arguments.seed)
        else:
            in_processes(vlm, scratch, out, arguments.seed, arguments.encoder)
    print(f"{out} in {time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
