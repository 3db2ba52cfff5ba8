"""Fine-tuning against a plain Hugging Face Trainer that pads; and, on a GPU, an 8B model's tokens/s, MFU and memory.

    python -m benchmarks.sft [--json FILE]
    python -m benchmarks.sft --gpu [--tokens 8192] [--json FILE]
    python -m benchmarks.sft --gpu --model embedded          # the same code rehearsed, also without a GPU

On a CPU: two small models whose processor cuts images into up to six tiles as a real InternVL does, so that samples
have 52 to 161 tokens. One is the embedded model, of whose operations two thirds are its vision tower's, which no
trainer pads; the other has InternVL3-8B's proportions, where the language model computes six times as much on an image
as the vision tower, and random weights. The same samples in the same batches, the same schedule, both in float32 on all
cores. Rates are of stepping, without the first steps; the peer's is the better of two, with its data loader in the
training process (its default) and in a process beside it.

On a GPU: InternVL3-8B's sizes with random weights, one packed row a step, full parameters, AdamW; no peer, no data.
"""

import argparse
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from medq_ray.plan.sizes import Model

SAMPLES, BATCH, WARM, SEED, RATE = 640, 16, 5, 0, 1e-4
SIDES = ((112, 112), (112, 224), (224, 112), (224, 224), (112, 336), (224, 336))
"""Sizes of images: one to six tiles, and one of the whole where there are several."""


def prepare(folder: Path) -> tuple[Path, dict[str, Path]]:
    """(data set, checkpoints by name): samples of every kind about degraded phantoms of all SIDES."""
    from PIL import Image

    from medq_ray.evolve.dataset import write_dataset
    from medq_ray.model.tiny import embedded_checkpoint
    from tests.evolve import fake

    images = fake.write_images(folder / "images", SAMPLES // 4)
    for number, image in enumerate(images):
        height, width = SIDES[number % len(SIDES)]
        Image.open(image["uri"]).resize((width, height)).save(image["uri"])
    write_dataset(folder / "dataset", fake.samples(images).slice(0, SAMPLES), fake.pooled(images))
    embedded = shutil.copytree(embedded_checkpoint(), folder / "embedded")
    path = embedded / "processor_config.json"
    settings = json.loads(path.read_text())
    settings["image_processor"] |= {"crop_to_patches": True, "min_patches": 1, "max_patches": 6}
    path.write_text(json.dumps(settings))
    large = proportioned(embedded, folder / "proportions")
    return folder / "dataset", {"embedded": embedded, "an 8B's proportions": large}


def proportioned(embedded: Path, folder: Path) -> Path:
    """The embedded checkpoint with random weights, a smaller vision tower and a larger language model: 13 and 82
    million products of weights and positions a tile (InternVL3-8B: 0.31 and 1.8 trillion)."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(shutil.copytree(embedded, folder))
    for part, width, layers, inner in ((config.vision_config, 64, 4, 256), (config.text_config, 256, 6, 768)):
        part.hidden_size, part.num_hidden_layers, part.intermediate_size = width, layers, inner
    config.text_config.layer_types = ["full_attention"] * 6
    torch.manual_seed(SEED)
    AutoModelForImageTextToText.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def ours(folder: Path, dataset: Path, checkpoint: Path, workers: int) -> tuple[float, list[float]]:
    """(samples/s, losses of all steps)."""
    from medq_ray.config import Config, Evolve
    from medq_ray.evolve.dataset import read_dataset
    from medq_ray.evolve.feed import measure
    from medq_ray.evolve.sft import fine_tune

    settings = Evolve(learning_rate=RATE, epochs=1, batch_size=BATCH, workers=workers, activation_checkpointing=False)
    tokens = measure(read_dataset(dataset)[0].to_pylist(), checkpoint, 2)
    print(f"tokens of a sample: {min(tokens.values())} to {max(tokens.values())}, "
          f"median {statistics.median(tokens.values()):.0f}")  # fmt: skip
    config = Config(seed=SEED, evolve=settings)
    fine_tune(folder, dataset=dataset, tokens=tokens, checkpoint=checkpoint, config=config, iteration=0)
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = steps[WARM:]
    rate = sum(step["samples"] for step in timed) / sum(step["seconds"] for step in timed)
    return rate, [step["loss"] for step in steps]


def peer(dataset: Path, checkpoint: Path, loaders: int) -> tuple[float, list[float]]:
    """The same of a plain Trainer, in this process."""
    import torch
    from transformers import AutoModelForImageTextToText, Trainer, TrainerCallback, TrainingArguments

    from medq_ray.evolve.dataset import read_dataset
    from medq_ray.evolve.encoding import IGNORED, SampleEncoder
    from medq_ray.evolve.packing import batches
    from medq_ray.evolve.worker import learning_rate

    rows, encoder = read_dataset(dataset)[0].to_pylist(), SampleEncoder(checkpoint)
    order = [i for batch in batches(len(rows), BATCH, [SEED, 0], 0) for i in batch]
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)

    def collate(samples: list[dict]) -> dict:
        encoded = [encoder.read(sample) for sample in samples]

        def padded(name: str, value: int) -> torch.Tensor:
            return torch.nn.utils.rnn.pad_sequence([one[name] for one in encoded], True, value)

        labels = padded("labels", IGNORED)
        lengths = torch.tensor([len(one["labels"]) for one in encoded])
        return {"input_ids": padded("input_ids", 0), "labels": labels,
                "attention_mask": (torch.arange(labels.shape[1]) < lengths[:, None]).long(),
                "pixel_values": torch.cat([one["pixel_values"] for one in encoded])}  # fmt: skip

    losses: list[float] = []

    def eq4(outputs: object, labels: torch.Tensor, num_items_in_batch: object = None) -> torch.Tensor:
        logits = outputs.logits[:, :-1].flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum") / len(labels)
        losses.append(loss.item())
        return loss

    class Clock(TrainerCallback):
        ends: list[float] = []

        def on_step_end(self, *_: object, **__: object) -> None:
            self.ends.append(time.perf_counter())

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: object) -> torch.utils.data.Sampler:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    steps = -(-len(rows) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.01, fused=True)  # as the Trainer's own
    settings = {"learning_rate": RATE, "warmup": 0.05}
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: learning_rate(done + 1, steps, settings))
    with tempfile.TemporaryDirectory() as out:
        InOrder(
            model=model, data_collator=collate, train_dataset=[rows[i] for i in order], compute_loss_func=eq4,
            optimizers=(optimizer, schedule), callbacks=[Clock()],
            args=TrainingArguments(
                output_dir=out, per_device_train_batch_size=BATCH, num_train_epochs=1, max_grad_norm=1.0, use_cpu=True,
                report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
                remove_unused_columns=False, dataloader_num_workers=loaders, dataloader_pin_memory=False,
            ),
        ).train()  # fmt: skip
    ends = Clock.ends
    return (len(rows) - WARM * BATCH) / (ends[-1] - ends[WARM - 1]), losses


def apart(dataset: Path, checkpoint: Path, loaders: int) -> tuple[float, list[float]]:
    """`peer` in a process of its own, as ours are."""
    code = f"import json; from pathlib import Path; from benchmarks.sft import peer; " \
           f"print(json.dumps(peer(Path({str(dataset)!r}), Path({str(checkpoint)!r}), {loaders})))"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    rate, losses = json.loads(done.stdout.splitlines()[-1])
    return rate, losses


def on_cpu() -> dict[str, dict]:
    import ray

    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        dataset, checkpoints = prepare(Path(folder))
        ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
        for name, checkpoint in checkpoints.items():
            rows |= compared(name, dataset, checkpoint)
        ray.shutdown()
    return rows


def compared(name: str, dataset: Path, checkpoint: Path) -> dict[str, dict]:
    """Rows of ours with one worker a core and fewer, over the best of the peer's."""
    from joblib import cpu_count

    rows, rates = {}, {}
    for loaders in (0, 1):
        rates[loaders], theirs = apart(dataset, checkpoint, loaders)
        print(f"{name}: Trainer, {loaders} loaders beside it: {rates[loaders]:.1f} samples/s", flush=True)
    best = max(rates.values())
    for workers in range(1, cpu_count() + 1):
        out = checkpoint.with_name(f"{checkpoint.name}-{workers}")
        out.mkdir()
        rate, losses = ours(out, dataset, checkpoint, workers)
        last, other = (statistics.fmean(some[-10:]) for some in (losses, theirs))
        note = f"final loss {last:.4f} and {other:.4f} (mean of 10 steps)"
        print(f"{name}: medq_ray, {workers} workers: {rate:.1f} samples/s, {rate / best:.2f}x; {note}", flush=True)
        assert abs(last - other) <= 0.01 * other, note
        rows[f"{name}, {workers} workers"] = {"ours": rate, "peer": best, "ratio": rate / best, "unit": "samples/s",
                                              "note": note}  # fmt: skip
    return rows


def random_row(model: "Model", config: Any, most: int) -> dict[str, "Tensor"]:
    """A packed row of at most `most` tokens of samples as `medq plan` assumes them: image, question and answer."""
    import torch

    from medq_ray.config import Explore
    from medq_ray.evolve.encoding import IGNORED, pack
    from medq_ray.plan.assumed import Assumed
    from medq_ray.plan.phases import Load

    load, draw = Load.of(model, Assumed()), torch.Generator().manual_seed(SEED)
    pixels = (1, 3, *config.vision_config.image_size)
    samples: list[dict] = []
    for kind in itertools.cycle(Explore().kinds):
        length = load.prompt + load.answers[kind]
        if sum(len(sample["input_ids"]) for sample in samples) + length > most:
            if not samples:
                raise SystemExit(f"--tokens {most}: a sample has {length}")
            return pack(samples)
        ids = torch.randint(config.image_token_id, (length,), generator=draw)
        ids[: load.image] = config.image_token_id
        labels = torch.where(torch.arange(length) < load.prompt, IGNORED, ids)
        samples.append({"input_ids": ids, "labels": labels, "positions": torch.arange(length)[None],
                        "pixel_values": torch.randn(pixels, generator=draw)})  # fmt: skip


def on_gpu(name: str, tokens: int, steps: int = 20) -> dict[str, dict]:
    """An InternVL of `name`'s sizes with random weights, stepped as a fine-tuning worker does; its medians."""
    import torch
    import torch.distributed as dist
    from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

    from medq_ray.config import Evolve
    from medq_ray.evolve import worker
    from medq_ray.evolve.adapters import ADAPTERS
    from medq_ray.evolve.encoding import IGNORED
    from medq_ray.evolve.metrics import Metrics
    from medq_ray.evolve.packing import Row
    from medq_ray.plan import memory
    from medq_ray.plan.sizes import config_of, sizes_of

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and name != "embedded":
        raise SystemExit("no GPU here: give --model embedded to rehearse on a CPU")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    raw, settings = config_of(name), Evolve(max_tokens=tokens).model_dump()
    config, adapter = CONFIG_MAPPING["internvl"].from_dict(raw), ADAPTERS["internvl"]
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model = worker.sharded(worker.prepared(model, adapter, settings), device)
    model.to_empty(device=device)
    model.tie_weights()
    model.init_weights()
    optimizer, row = worker.new_optimizer(model, settings), random_row(sizes_of(name), config, tokens)
    count, length = len(row["lengths"]), int(row["lengths"].sum())
    weights, answers = sum(p.numel() for p in model.parameters()), int((row["labels"] != IGNORED).sum())
    print(f"{name}: {weights:,} parameters on {device}; rows of {length:,} tokens ({answers} of answers) in {count} "
          "samples", flush=True)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        metrics, ended = Metrics(Path(folder), model, adapter, device, 1, 0), time.perf_counter()
        for step in range(1, WARM + steps + 1):
            place = Row(step, tuple(range(count)), count, last=True)
            tensors = {name: tensor.to(device) for name, tensor in row.items()}
            losses = worker.backward(model, tensors, place, "sum")
            asked = [{"question_id": str(i)} for i in range(count)]
            numbers = worker.finish_step(model, optimizer, [(place, tensors, losses)], asked, RATE, settings)
            began, ended = ended, time.perf_counter()
            metrics.write({"step": step, **numbers, "samples": count}, ended - began)
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()][WARM:]
    dist.destroy_process_group()
    planned = memory.training(
        sizes_of(name),
        memory.Row(length, count, int((row["input_ids"] == config.image_token_id).sum()),
                   answers, int(row["lengths"].max()), count),
        device=memory.GPU if device.type == "cuda" else memory.CPU, world=1,
        checkpointing=settings["activation_checkpointing"], frozen=set(),
    )["peak"]  # fmt: skip
    rates = [line["tokens_per_second"] for line in lines]
    print(f"tokens/s: median {statistics.median(rates):,.0f}, {min(rates):,.0f} to {max(rates):,.0f} in {steps} steps")
    found = {f"{name}: tokens/s": {"ours": statistics.median(rates), "unit": "tokens/s"}}
    if device.type == "cuda":
        peak, mfu = lines[-1]["memory_bytes"], [line["mfu"] for line in lines]
        print(f"MFU: {mfu[0] and f'{statistics.median(mfu):.1%}'} (on {torch.cuda.get_device_name(device)})")
        print(f"peak memory: {peak / 1e9:.1f} GB; medq plan says {planned / 1e9:.1f} ({planned / peak - 1:+.1%})")
        found[f"{name}: MFU"] = {"ours": mfu[0] and statistics.median(mfu), "unit": "share of the peak"}
        found[f"{name}: peak memory"] = {"ours": peak, "peer": planned, "ratio": planned / peak, "unit": "bytes",
                                         "note": "the peer is what medq plan says"}  # fmt: skip
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="the second mode")
    parser.add_argument("--model", default="hf-hub:OpenGVLab/InternVL3-8B-hf", help="whose sizes it has")
    parser.add_argument("--tokens", type=int, default=8192, help="of a row")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    found = on_gpu(chosen.model, chosen.tokens) if chosen.gpu else on_cpu()
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1))
