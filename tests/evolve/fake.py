"""A few images with questions, annotations, verdicts and samples, for the tests of this phase."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from medq_ray import questions, schema
from medq_ray.config import Evolve
from medq_ray.evolve.curate import curate
from medq_ray.images import pixel_digest
from medq_ray.model.prompts import render


def write_images(folder: Path, count: int) -> list[dict]:
    """Rows of image_id, uri, modality, degradation, severity; the severity shows as the height of a bright band."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        modality = schema.MODALITIES[i % 5]
        severity = schema.SEVERITIES[i % 3]
        degradation = "none" if severity == "none" else schema.DEGRADATIONS[modality][i % 5]
        pixels = rng.integers(0, 60, (112, 112, 3), dtype=np.uint8)
        pixels[: 16 + 40 * schema.SEVERITIES.index(severity)] += 120
        name = pixel_digest(pixels)
        uri = folder / f"{name}.png"
        Image.fromarray(pixels).save(uri)
        rows.append({"image_id": name, "uri": str(uri), "modality": modality, "degradation": degradation,
                     "severity": severity})  # fmt: skip
    return rows


def pooled(rows: list[dict]) -> pa.Table:
    """schema.POOL_IMAGE of all images, each of its own patient and far from the others unless a row brings its own."""
    rng = np.random.default_rng(1)
    table = [
        {"split": "pool", "source": "synthetic", "patient": f"p{i}", "session": f"s{i}", "proven": True,
         "licence": "CC0", "share": True, "train": True, "labels": "{}", "phash": int(rng.integers(1 << 63)),
         "sharpness": 1.0, "noise": 1.0, "thumb": bytes(256), **row}
        for i, row in enumerate(rows)
    ]  # fmt: skip
    return pa.Table.from_pylist(
        [{name: row[name] for name in schema.POOL_IMAGE.names} for row in table], schema=schema.POOL_IMAGE
    )


def question(image: dict, kind: str) -> dict:
    rng = np.random.default_rng(0)
    modality = image["modality"]
    if kind == "yes_no":
        text, options = questions.yes_no(modality, None)
    elif kind == "what":
        text, options = questions.what(modality, questions.offered_with(modality, image["degradation"], rng), rng)
    elif kind == "how":
        text, options = questions.how(modality, False, rng)
    else:
        text, options = questions.description(modality), []
    return {"question_id": f"{image['image_id']}-{kind}", "image_id": image["image_id"], "uri": image["uri"],
            "kind": kind, "scope": "general", "modality": modality, "text": text, "options": options, "answer": "",
            "capabilities": [f"kind:{kind}", f"modality:{modality}"], "second_id": None,
            "second_uri": None}  # fmt: skip


def truth(image: dict, asked: dict) -> str:
    if asked["kind"] == "description":
        return questions.describe(image["modality"], image["degradation"], image["severity"])
    seen = image["degradation"], image["severity"]
    return questions.gold_letter(asked["kind"], asked["text"], asked["options"], *seen)


def annotation(asked: dict, label: str, **changes) -> dict:
    return {"question_id": asked["question_id"], "image_id": asked["image_id"], "oracle_text": label,
            "oracle_model": "oracle", "oracle_simulated": True, "self_text": "", "self_model": "", "entropy": None,
            "agreement": None, "route": "oracle", "reason": "", "label": label, "labelled_by": "oracle",
            **changes}  # fmt: skip


def verdict(annotated: dict, action: str, after: str) -> dict:
    return {"question_id": annotated["question_id"], "image_id": annotated["image_id"], "action": action,
            "before": annotated["label"], "after": after, "reviewer": "expert", "simulated": True,
            "seconds": 30.0}  # fmt: skip


def tables(images: list[dict]) -> dict[str, pa.Table]:
    """questions, annotations (route oracle, right labels), verdicts (none) and images, four questions an image."""
    asked = [(image, question(image, kind)) for image in images for kind in schema.KINDS]
    return {
        "questions": pa.Table.from_pylist([row for _, row in asked], schema=schema.QUESTION),
        "annotations": pa.Table.from_pylist([annotation(q, truth(i, q)) for i, q in asked], schema=schema.ANNOTATION),
        "verdicts": pa.Table.from_pylist([], schema=schema.VERDICT),
        "images": pooled(images),
    }


def trainable(checkpoint: Path, settings: dict) -> Any:
    """The model of a checkpoint as one process trains it, in float32; settings: of the evolve section."""
    import torch
    from transformers import AutoModelForImageTextToText

    from medq_ray.evolve.adapters import adapter_of
    from medq_ray.evolve.worker import prepared

    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    return prepared(model, adapter_of(checkpoint), settings)


def samples(images: list[dict]) -> pa.Table:
    """schema.SAMPLE: the accepted samples of `tables`, and a comparison of the first two images."""
    made = tables(images)
    found, _ = curate(
        made["questions"], made["annotations"], made["verdicts"], made["images"], earlier=None,
        settings=Evolve(tfidf_keep=100), iteration=0,
    )  # fmt: skip
    one, other = found.to_pylist()[0], images[1]
    text, options = questions.comparison("ct", np.random.default_rng(0))
    compared = {
        **{name: images[0][name] for name in ("image_id", "uri")}, "question_id": f"{images[0]['image_id']}-comparison",
        "kind": "comparison", "second_id": other["image_id"], "second_uri": other["uri"], "options": options,
        "prompt": render(text, options), "answer": "A",
    }  # fmt: skip
    rows = sorted([*found.to_pylist(), one | compared], key=lambda row: row["question_id"])
    return pa.Table.from_pylist(rows, schema=schema.SAMPLE)
