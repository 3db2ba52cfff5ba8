"""Trains the embedded encoder from scratch: `python -m medq_ray.model.assets.train encoder`.

Its vision tower has InternVL's shape (no norm before the blocks), so that the base model can start from it.
Contrastive training on captions, as CLIP, with two changes that few distinct captions call for: images of one caption
are all positives of each other (supervised contrastive loss), and a batch is compared with every caption there is.
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from medq_ray import questions
from medq_ray.model import tiny
from medq_ray.model.assets.corpus import Drawn
from medq_ray.model.assets.optimise import optimise, share_of
from medq_ray.model.assets.train_vlm import WEIGHTS, load
from medq_ray.schema import DEGRADATIONS, EVERYDAY, MODALITIES, SEVERITIES

WIDTH, DIM, CONTEXT = 128, 128, 48
CAPTIONS = [(m, "none", "none") for m in MODALITIES] + [
    (m, d, s) for m in MODALITIES for d in DEGRADATIONS[m] for s in SEVERITIES[1:]
]
CELLS = [(m, d) for m in MODALITIES for d in ("none", *DEGRADATIONS[m])]


def caption(modality: str, degradation: str, severity: str, rng: np.random.Generator) -> str:
    """One of three wordings."""
    name = questions.MODALITY_NAMES[modality]
    if rng.random() < 0.34:
        return questions.describe(modality, degradation, severity)
    if severity == "none":
        return f"{name} image, no visible degradation" if rng.random() < 0.5 else f"a good {name} image"
    finding = f"{severity} {questions.DEGRADATION_NAMES[degradation]}"
    return f"{name} image, {finding}" if rng.random() < 0.5 else f"{finding} in {questions.article(name)} image"


def config() -> dict:
    """open_clip_config.json."""
    return {
        "model_cfg": {
            "embed_dim": DIM,
            "vision_cfg": {
                "image_size": tiny.SIZE,
                "layers": 4,
                "width": WIDTH,
                "head_width": 32,
                "no_ln_pre": True,
                "patch_size": tiny.PATCH,
                "pool_type": "avg",
                "final_ln_after_pool": True,
            },
            "text_cfg": {
                "context_length": CONTEXT,
                "vocab_size": tiny.VOCABULARY,
                "width": 64,
                "heads": 4,
                "layers": 2,
                "hf_tokenizer_name": "tokenizer.json",
                "pool_type": "eos",
                "eos_id": 2,
            },
        },
        "preprocess_cfg": {
            "size": tiny.SIZE,
            "mean": [tiny.MEAN] * 3,
            "std": [tiny.STD] * 3,
            "interpolation": "bicubic",
            "resize_mode": "squash",
        },
    }


def write_folder(folder: Path) -> None:
    """Everything but the weights: open_clip_config.json and the base model's tokenizer, which here ends texts."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny.build_tokenizer()
    end = tokenizer.convert_tokens_to_ids(tiny.END)
    assert end == config()["model_cfg"]["text_cfg"]["eos_id"]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {tiny.END}", special_tokens=[(tiny.END, end)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    (folder / "open_clip_config.json").write_text(json.dumps(config(), indent=2) + "\n")


def build(folder: Path, seed: int):
    """(random model with DCT patch filters, open_clip tokenizer) of a folder that `write_folder` wrote."""
    import open_clip

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    with torch.no_grad():
        model.visual.conv1.weight.copy_(torch.from_numpy(tiny.dct_filters(WIDTH, tiny.PATCH)))
    return model, open_clip.get_tokenizer(f"local-dir:{folder}")


def save(model, folder: Path) -> None:
    """Weights in float16, half the size."""
    from safetensors.torch import save_file

    path = folder / WEIGHTS
    save_file({name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}, path)
    path.chmod(0o644)


def balanced_rows(plan: list[Drawn]) -> list[np.ndarray]:
    """Row numbers of the clean, everyday and specific images."""
    clean = np.array([row.degradation == "none" for row in plan])
    usual = np.array([row.degradation in EVERYDAY for row in plan])
    return [np.flatnonzero(mask) for mask in (clean, usual, ~clean & ~usual)]


def contrastive_loss(images, texts, scale, captions: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """images (N, D) and texts (55, D) of unit length. Image to its caption, caption to its images, image to the
    other images of its cell (modality x degradation)."""
    logits = scale * images @ texts.T
    to_text = F.cross_entropy(logits, captions)
    present = captions.unique()
    mine = (captions[None] == present[:, None]).float()
    to_images = -(F.log_softmax(logits.T[present], 1) * mine / mine.sum(1, keepdim=True)).sum(1).mean()
    itself = torch.eye(len(images), dtype=torch.bool)
    among = (10 * images @ images.T).masked_fill(itself, -1e4)
    same = ((cells[None] == cells[:, None]) & ~itself).float()
    each = -(F.log_softmax(among, 1) * same).sum(1) / same.sum(1).clamp(min=1)
    return to_text + 0.5 * to_images + each[same.any(1)].mean()


def train(pools: list[tuple[np.ndarray, list[Drawn]]], folder: Path, steps: int, seed: int):
    """Train on image sets with their plans: a fifth of a batch clean, three tenths everyday, half specific.

    `folder` was written by `write_folder`. Returns the model.
    """
    model, tokenizer = build(folder, seed)
    sources = [(images, plan, rows) for images, plan in pools for rows in balanced_rows(plan) if len(rows)]
    counts = (10, 14, 24)
    assert len(sources) == len(counts)
    draws = np.random.default_rng([seed, 4, share_of().start])

    def loss_of(step: int) -> torch.Tensor:
        pixels, truths = [], []
        for (images, plan, rows), count in zip(sources, counts, strict=True):
            picked = draws.choice(rows, count, replace=False)
            pixels.append(load(images, picked, draws))
            truths += [plan[i] for i in picked]
        texts = model.encode_text(tokenizer([caption(*c, draws) for c in CAPTIONS]), normalize=True)
        seen = model.encode_image(torch.cat(pixels), normalize=True)
        with torch.autocast("cpu", enabled=False):
            return contrastive_loss(
                seen.float(),
                texts.float(),
                model.logit_scale.exp().clamp(max=100),
                torch.tensor([CAPTIONS.index(t[:3]) for t in truths]),
                torch.tensor([CELLS.index(t[:2]) for t in truths]),
            )

    optimise(list(model.parameters()), loss_of, steps, 1e-3, "encoder")
    return model


def retrieval(encoder, images: np.ndarray, plan: list[Drawn], each: int, rare: int) -> str:
    """How well a prototype (the mean of five images of a modality-specific cell) finds the rest of its cell.

    `plan` begins with 5 + `each` images of every specific cell by turns. Two pools: `rare` images of a cell among the
    common ones, and `each` of them. Precision at k is measured at k = the number there is to find.
    """
    vectors = np.concatenate([encoder.images(list(images[i : i + 100])) for i in range(0, len(images), 100)])
    cells = [f"{row.modality}/{row.degradation}" for row in plan]
    names, specific = cells[:15], 15 * (5 + each)
    lines = [f"| cell | precision at {rare} of {rare} | precision at {each} of {each} |", "|---|---|---|"]
    both = []
    for number, name in enumerate(names):
        prototype = vectors[number : 15 * 5 : 15].mean(0)
        shares = []
        for count in (rare, each):
            pool = [*range(15 * 5, 15 * (5 + count)), *range(specific, len(plan))]
            best = np.argsort(-(vectors[pool] @ prototype), kind="stable")[:count]
            shares.append(float(np.mean([cells[pool[i]] == name for i in best])))
        both.append(shares)
        lines.append(f"| {name} | {shares[0]:.2f} | {shares[1]:.2f} |")
    means = np.mean(both, 0)
    lines.append(f"| mean | {means[0]:.2f} | {means[1]:.2f} |")
    own = [np.mean(vectors[i : 15 * 5 : 15] @ vectors[15 * 5 + i : specific : 15].T) for i in range(15)]
    lines.append("")
    lines.append(f"Mean cosine within a cell {np.mean(own):.2f}, over all pairs {np.sum(vectors.mean(0) ** 2):.2f}.")
    return "\n".join(lines)
