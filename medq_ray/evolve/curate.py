"""Quality assurance: which annotations become training samples (paper Sec. 2.4), and why the others do not.

Four rules in this order, each writing its drops: the label (rejected, unreviewed or unusable), the leak check,
perceptual-hash deduplication, TF-IDF diversity of the descriptions. None depends on the order of rows.

An image whose description repeats what enough others say goes with all its questions (our choice): where most images
are clean, training on every one of them teaches the answer "none". In one first iteration half of the
400 labelled images were clean; trained on all of them at 2e-4, an earlier base model's dev accuracy on specific
degradations fell from 29 % to 22 % (one run).
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medq_ray.config import Evolve
from medq_ray.model.prompts import parse_letter, render
from medq_ray.pool.dedup import duplicate_groups
from medq_ray.questions.findings import read_findings
from medq_ray.schema import DROP, SAMPLE

REVIEWED_ROUTES = ("cold_start", "expert")
"""Routes whose annotation needs a verdict before anybody trains on it (paper Sec. 2.3)."""


def curate(
    questions: pa.Table,
    annotations: pa.Table,
    verdicts: pa.Table,
    images: pa.Table,
    *,
    earlier: pa.Table | None,
    held_out: set[str],
    settings: Evolve,
    iteration: int,
) -> tuple[pa.Table, pa.Table]:
    """(samples, drops): SAMPLE and DROP rows, by ascending id; every annotation is in exactly one of them.

    Drop ids are question ids. Keepers are image ids for the step 'duplicate' and question ids for 'diversity'.
    Raises ValueError for an annotation of a question that nobody asked or of an image without a hash.
    """
    asked = {row["question_id"]: row for row in questions.to_pylist()}
    judged = {row["question_id"]: row for row in verdicts.to_pylist()}
    samples: list[dict] = []
    drops: list[dict] = []

    def drop(row: dict, step: str, reason: str, keeper: str = "") -> None:
        drops.append({"id": row["question_id"], "step": step, "reason": reason, "keeper": keeper})

    for annotation in annotations.sort_by("question_id").to_pylist():
        question = asked.get(annotation["question_id"])
        if question is None:
            raise ValueError(f"annotation of question {annotation['question_id']}, which is not among the questions")
        sample, why_not = labelled(question, annotation, judged.get(annotation["question_id"]))
        if sample is None:
            drop(annotation, "label", why_not)
        elif annotation["image_id"] in held_out:
            drop(annotation, "leak", f"image {annotation['image_id']} is in dev or test")
        else:
            samples.append({**sample, "iteration": iteration})

    keepers = duplicate_images(samples, images, earlier, settings)
    for sample in samples:
        if sample["image_id"] in keepers:
            drop(sample, "duplicate", f"image {sample['image_id']} is a near-duplicate", keepers[sample["image_id"]])
    samples = [sample for sample in samples if sample["image_id"] not in keepers]

    reviewed = {question_id for question_id, verdict in judged.items() if verdict["action"] != "reject"}
    texts = {sample["question_id"]: sample["answer"] for sample in samples if sample["kind"] == "description"}
    similar = near_duplicate_texts(texts, reviewed, settings.tfidf_threshold, settings.tfidf_keep)
    repeated = {
        sample["image_id"]: similar[sample["question_id"]] for sample in samples if sample["question_id"] in similar
    }
    for sample in samples:
        if sample["image_id"] in repeated:
            reason = f"image described within TF-IDF cosine {settings.tfidf_threshold} of {settings.tfidf_keep} kept"
            drop(sample, "diversity", reason, repeated[sample["image_id"]])
    samples = [sample for sample in samples if sample["image_id"] not in repeated]
    drops.sort(key=lambda row: row["id"])
    return pa.Table.from_pylist(samples, schema=SAMPLE), pa.Table.from_pylist(drops, schema=DROP)


def labelled(
    question: dict[str, Any], annotation: dict[str, Any], verdict: dict[str, Any] | None
) -> tuple[dict[str, Any] | None, str]:
    """(sample without its iteration, '') or (None, why there is none).

    The label is the reviewer's where there is a verdict, else the one that routing adopted. Whoever answers for the
    label is its `labelled_by`: the reviewer also where he only accepted. A label counts as simulated when a simulated
    oracle or expert wrote or confirmed it.
    """
    route = annotation["route"]
    if route == "dropped":
        return None, f"dropped by routing: {annotation['reason']}"
    if verdict is None and route in REVIEWED_ROUTES:
        return None, f"route {route} needs a verdict and has none"
    if verdict is not None and verdict["action"] == "reject":
        return None, f"rejected by {verdict['reviewer']}"
    if verdict is None:  # route oracle or self: the oracle wrote the label or confirmed it
        label, author, simulated = annotation["label"], annotation["labelled_by"], annotation["oracle_simulated"]
    else:
        accepted_oracle = verdict["action"] == "accept" and annotation["labelled_by"] == "oracle"
        label, author = verdict["after"], verdict["reviewer"]
        simulated = verdict["simulated"] or (accepted_oracle and annotation["oracle_simulated"])
    if question["options"]:
        answer = parse_letter(label, len(question["options"]))
        if answer is None:
            return None, f"label {label!r:.60} is none of the {len(question['options'])} letters"
    else:
        answer = label.strip()
        if read_findings(answer) is None:
            return None, f"label {label!r:.60} is no readable description"
    return {
        **{name: question[name] for name in ("question_id", "image_id", "uri", "second_uri", "kind", "modality")},
        "prompt": render(question["text"], question["options"]),
        "answer": answer,
        "route": route,
        "labelled_by": author,
        "simulated": simulated,
    }, ""


def duplicate_images(
    samples: list[dict], images: pa.Table, earlier: pa.Table | None, settings: Evolve
) -> dict[str, str]:
    """Image id -> keeper's image id, for each image of `samples` that is a near-duplicate of another trained on.

    Among new images the group's owner stays; an earlier iteration's image stays before any new one.
    """
    new = {sample["image_id"] for sample in samples}
    known = set(earlier["image_id"].to_pylist()) if earlier is not None else set()
    used = images.filter(pc.is_in(images["image_id"], value_set=pa.array(sorted(new | known), pa.string())))
    hashed = set(used["image_id"].to_pylist())
    for sample in samples:
        if sample["image_id"] not in hashed:
            raise ValueError(f"image {sample['image_id']} of question {sample['question_id']} has no perceptual hash")
    owners = duplicate_groups(used, radius=settings.phash_radius, tolerance=settings.quality_tolerance)
    trained: dict[str, str] = {}  # owner -> smallest image of its group that an earlier iteration has trained on
    for image in sorted(known & owners.keys()):
        trained.setdefault(owners[image], image)
    keepers = {image: trained.get(owners[image], owners[image]) for image in sorted(new - known)}
    return {image: keeper for image, keeper in keepers.items() if image != keeper}


def near_duplicate_texts(texts: dict[str, str], reviewed: set[str], threshold: float, keep: int) -> dict[str, str]:
    """Id -> keeper's id, for each text that already has `keep` near-duplicates among the kept ones.

    Texts are taken reviewed first, then by id, so the outcome does not depend on their order; each is compared with
    the kept ones only, so groups do not chain. Near-duplicates have a TF-IDF cosine of at least `threshold`; inverse
    document frequencies count distinct texts, so that a frequent sentence does not become a meaningless one.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not texts:
        return {}
    distinct = sorted(set(texts.values()))
    number = {text: i for i, text in enumerate(distinct)}
    vectors = TfidfVectorizer().fit_transform(distinct)  # rows of unit length
    near = [
        {i, *np.flatnonzero((vectors @ vectors[i].T).toarray().ravel() >= threshold - 1e-9).tolist()}
        for i in range(len(distinct))
    ]
    kept: list[list[str]] = [[] for _ in distinct]
    rank: dict[str, int] = {}
    keepers: dict[str, str] = {}
    for name in sorted(texts, key=lambda name: (name not in reviewed, name)):
        i = number[texts[name]]
        alike = [other for j in near[i] for other in kept[j]]
        if len(alike) >= keep:
            keepers[name] = min(alike, key=rank.__getitem__)
        else:
            rank[name] = len(rank)
            kept[i].append(name)
    return keepers
