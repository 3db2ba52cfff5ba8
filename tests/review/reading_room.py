"""Items with real pictures, as `handover.fill` makes them, for whoever tests the console."""

from pathlib import Path

import numpy as np

from medq_ray.depth import beside, packed, write_depth
from medq_ray.dicom import CT_WINDOW
from medq_ray.images import encode_png
from medq_ray.pool.sources._files import shown
from medq_ray.questions import NOTHING, comparison, describe, description, how, what, yes_no
from medq_ray.review.accounts import enrol
from medq_ray.review.handover import payload_of
from medq_ray.review.store import Store
from medq_ray.schema import ANNOTATION, SELECTION
from medq_ray.synthetic.world import make_image

KINDS = ("yes_no", "what", "how", "description", "comparison")
MODALITIES = ("mri", "ct", "endoscopy", "fundus", "histopathology")
DAMAGE = {"mri": "motion", "ct": "metal", "endoscopy": "smoke", "fundus": "haze", "histopathology": "fold"}
ORIGIN = {"source": "synthetic", "licence": "CC0-1.0"}


def draw(folder: Path, size: int = 224) -> dict[str, str]:
    """Pictures under `folder`: 'MODALITY-SEVERITY' -> path."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for modality in MODALITIES:
        for severity in ("none", "mild", "severe"):
            path = folder / f"{modality}-{severity}.png"
            pixels, _ = make_image(modality, "none" if severity == "none" else DAMAGE[modality], severity, 7, size)
            path.write_bytes(encode_png(pixels))
            found[f"{modality}-{severity}"] = str(path)
    return found


def thorax(folder: Path, side: int = 512) -> str:
    """The path of a CT slice with air, lungs, fat, muscle and bone, all its bits beside it."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    values = np.full((side, side), -1000.0)
    for (cy, cx, height, width), level in (
        ((0, 0, 0.66, 0.92), -100), ((0, 0, 0.58, 0.84), 50), ((-0.05, -0.4, 0.4, 0.28), -850),
        ((-0.05, 0.4, 0.4, 0.28), -850), ((-0.1, 0.08, 0.22, 0.2), 130), ((0.38, 0, 0.12, 0.12), 700),
        ((0.38, 0, 0.05, 0.06), 30), ((-0.1, -0.42, 0.02, 0.02), 20),
    ):  # fmt: skip
        values[((y - cy) / height) ** 2 + ((x - cx) / width) ** 2 < 1] = level
    values += np.random.default_rng(3).normal(0, 18, values.shape)
    values = np.rint(values).astype(np.int16)
    depth = packed(values, CT_WINDOW, bits=12, unit="HU", spacing=(0.7, 0.7))
    path = folder / "thorax.png"
    path.write_bytes(encode_png(shown(values, *CT_WINDOW)))
    write_depth(beside(path), depth)
    return str(path)


def question(number: int, kind: str, modality: str, pictures: dict[str, str]) -> dict:
    rng, damage = np.random.default_rng(number), DAMAGE[modality]
    text, options = {
        "yes_no": lambda: yes_no(modality, damage), "what": lambda: what(modality, ["blur", damage], rng),
        "how": lambda: how(modality, False, rng), "comparison": lambda: comparison(modality, rng),
        "description": lambda: (description(modality), []),
    }[kind]()  # fmt: skip
    pair = {"second_id": "b", "second_uri": pictures[f"{modality}-none"]} if kind == "comparison" else {}
    return {
        "question_id": f"q{number:03d}", "image_id": f"i{number:03d}", "uri": pictures[f"{modality}-severe"],
        "kind": kind, "scope": "specific", "modality": modality, "text": text, "options": options, "answer": "",
        "capabilities": [f"cell:{modality}/{damage}"], "second_id": None, "second_uri": None,
    } | pair  # fmt: skip


def piece(number: int, kind: str, modality: str, pictures: dict[str, str], *, reads: int = 1, **annotated) -> dict:
    """One item; `annotated` changes its annotation."""
    asked = question(number, kind, modality, pictures)
    label = describe(modality, DAMAGE[modality], "mild") if kind == "description" else "A"
    annotation = dict.fromkeys(ANNOTATION.names) | {
        "question_id": asked["question_id"], "route": "expert", "audit": False, "reason": "", "label": label,
        "labelled_by": "oracle", "oracle_simulated": True, "entropy": 0.4127, "agreement": 0.25,
    } | annotated  # fmt: skip
    why = dict.fromkeys(SELECTION.names) | {"strategy": "failure_driven", "capability": f"cell:{modality}/blur",
                                            "prototype_id": 3, "similarity": 0.81, "score": 0.8}  # fmt: skip
    failures = [
        {"question_id": f"f{n}", "uri": pictures[f"{modality}-{severity}"], "text": asked["text"],
         "expected": DAMAGE[modality], "given": NOTHING}
        for n, severity in enumerate(("mild", "severe", "none"))
    ]  # fmt: skip
    return {
        "iteration": 0, "question_id": asked["question_id"], "image_id": asked["image_id"],
        "patient": f"p{number:03d}", "kind": kind, "before": annotation["label"], "priority": 1.0, "reads": reads,
        "payload": payload_of(asked, annotation, why, failures, {name: ORIGIN for name in (asked["image_id"], "b")}),
    }  # fmt: skip


def furnish(store: Store, pieces: list[dict], people: dict[str, str]) -> dict[str, str]:
    """Put items and people (name -> role) into a store; name -> token."""
    with store.writing(alone=True) as transaction:
        known = {"iteration": 0, "fingerprint": "f", "annotations": 2 * len(pieces), "closed_at": None}
        transaction.add_iteration(known, pieces)
    return {name: enrol(store, name, role) for name, role in people.items()}
