"""Quality assurance: which annotations become training samples (paper Sec. 2.4), and why the others do not.

Five rules in this order, each writing its drops: the label (rejected, unreviewed or unusable), the leak check,
perceptual-hash deduplication, TF-IDF diversity of the descriptions, balance of the answers (`evolve.balance`). None
depends on the order of rows. What an earlier iteration trained on stays; these rules are about the new samples.

An image whose description repeats what enough others say goes with all its questions (our choice): where most images
are clean, training on every one of them teaches the answer "none". In one first iteration half of the
400 labelled images were clean; trained on all of them at 2e-4, an earlier base model's dev accuracy on specific
degradations fell from 29 % to 22 % (one run).
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medq_ray.config import Evolve
from medq_ray.evolve.balance import dealt, overfull
from medq_ray.labels import REVIEWED_ROUTES, readable
from medq_ray.model.prompts import render
from medq_ray.pool.dedup import Images, between, duplicate_groups
from medq_ray.schema import DROP, SAMPLE

TAKEN = ("question_id", "image_id", "uri", "second_id", "second_uri", "kind", "modality", "options", "capabilities")
"""Columns of schema.QUESTION that a sample keeps."""

Found = dict[str, tuple[str, str]]
"""What a rule drops: question id -> (reason, keeper)."""


def curate(
    questions: pa.Table,
    annotations: pa.Table,
    verdicts: pa.Table,
    images: pa.Table,
    *,
    earlier: pa.Table | None,
    settings: Evolve,
    iteration: int,
) -> tuple[pa.Table, pa.Table]:
    """(samples, drops): SAMPLE and DROP rows, by ascending id; every annotation is in exactly one of them.

    images: schema.POOL_IMAGE of all images of dev and test, and of all that were asked about now or trained on before.
    earlier: SAMPLE of all earlier iterations. Drop ids are question ids. Keepers are image ids for the steps 'leak' (of
    dev or test) and 'duplicate', question ids for 'diversity', and '' where nothing stands in a sample's place.

    Raises ValueError for an annotation of a question that nobody asked or of an image without a hash.
    """
    asked = {row["question_id"]: row for row in questions.to_pylist()}
    judged = {row["question_id"]: row for row in verdicts.to_pylist()}
    samples: list[dict] = []
    drops: list[dict] = []
    for annotation in annotations.sort_by("question_id").to_pylist():
        name = annotation["question_id"]
        if name not in asked:
            raise ValueError(f"annotation of question {name}, which is not among the questions")
        sample, why_not = labelled(asked[name], annotation, judged.get(name))
        if sample is None:
            drops.append({"id": name, "step": "label", "reason": why_not, "keeper": ""})
        else:
            samples.append({**sample, "iteration": iteration})
    reviewed = {name for name, verdict in judged.items() if verdict["action"] != "reject"}
    trained = set(earlier["image_id"].to_pylist()) if earlier is not None else set()
    images = compared(samples, trained, images)
    rules: dict[str, Callable[[list[dict]], Found]] = {
        "leak": lambda rest: leaks(rest, images, settings),
        "duplicate": lambda rest: duplicates(rest, trained, reviewed, images, settings),
        "diversity": lambda rest: repeats(rest, reviewed, settings),
        "balance": lambda rest: overfull(rest, reviewed, settings.class_ratio),
    }
    for step, rule in rules.items():
        found = rule(samples)
        drops += [{"id": name, "step": step, "reason": why, "keeper": keeper} for name, (why, keeper) in found.items()]
        samples = [sample for sample in samples if sample["question_id"] not in found]
    inherit(drops, trained | {sample["image_id"] for sample in samples}, asked)
    samples = dealt(samples, settings.letter_ratio)
    drops.sort(key=lambda row: row["id"])
    return pa.Table.from_pylist(samples, schema=SAMPLE), pa.Table.from_pylist(drops, schema=DROP)


def inherit(drops: list[dict], left: set[str], asked: dict[str, dict[str, Any]]) -> None:
    """Where a later rule dropped the image that a duplicate's place was given to, name what stays for that one: the
    image whose description it repeats or, after balance, nothing. left: images that are trained on; asked: the
    questions by id. Descriptions are dropped by no rule after diversity, so that one look is enough."""
    image_of = {name: row["image_id"] for name, row in asked.items()}
    heirs = {image_of[row["id"]]: image_of[row["keeper"]] for row in drops if row["step"] == "diversity"}
    for row in drops:
        if row["step"] == "duplicate" and row["keeper"] not in left:
            row["reason"] += f" of {row['keeper']}, which itself was dropped"
            row["keeper"] = heirs.get(row["keeper"], "")


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
    answer = readable(question["kind"], label, len(question["options"]))
    if answer is None:
        form = f"none of the {len(question['options'])} letters" if question["options"] else "no readable description"
        return None, f"label {label!r:.60} is {form}"
    return {
        **{name: question[name] for name in TAKEN},
        "prompt": render(question["text"], question["options"]),
        "answer": answer,
        "route": route,
        "labelled_by": author,
        "simulated": simulated,
    }, ""


def pictures(sample: dict) -> list[str]:
    """Ids of a sample's images: one, or the two of a comparison."""
    return [image for image in (sample["image_id"], sample["second_id"]) if image]


def compared(samples: list[dict], trained: set[str], images: pa.Table) -> pa.Table:
    """The rows of schema.POOL_IMAGE that the rules compare: of the samples, of what was trained on, of dev and test."""
    wanted = trained | {image for sample in samples for image in pictures(sample)}
    mine = pc.is_in(images["image_id"], value_set=pa.array(sorted(wanted), pa.string()))
    images = images.filter(pc.or_(mine, pc.not_equal(images["split"], "pool"))).sort_by("image_id")
    hashed = set(images["image_id"].to_pylist())
    for sample in samples:
        for image in pictures(sample):
            if image not in hashed:
                raise ValueError(f"image {image} of question {sample['question_id']} has no perceptual hash")
    return images


def leaks(samples: list[dict], images: pa.Table, settings: Evolve) -> Found:
    """Samples that show an image of dev or test, one of its patient or session, or a near-duplicate of it.

    The split proof and the selection have looked before; this is the last place where a leak can be stopped. A patient
    whom nobody knows is a cluster of look-alikes (`pool.splits`). images: of `compared`.
    """
    rows = images.select(["image_id", "split", "patient", "session"]).to_pylist()
    held = [i for i, row in enumerate(rows) if row["split"] != "pool"]
    shown = {image for sample in samples for image in pictures(sample)}
    mine = [i for i, row in enumerate(rows) if row["image_id"] in shown]
    if not held or not mine:
        return {}
    found: dict[str, tuple[str, str]] = {}  # image -> (why it leaks, image of dev or test)
    for column, what in (("image_id", "image"), ("patient", "patient of image"), ("session", "session of image")):
        owner: dict[str, dict] = {}
        for i in held:
            owner.setdefault(rows[i][column], rows[i])
        for i in mine:
            other = owner.get(rows[i][column]) if rows[i][column] else None
            if other is not None:
                image = rows[i]["image_id"]
                found.setdefault(image, (f"{what} {image} is in {other['split']}", other["image_id"]))
    left, right = between(
        Images.of(images, settings.quality_tolerance), np.array(mine, np.intp), np.array(held, np.intp),
        settings.phash_radius,
    )  # fmt: skip
    for i, j in sorted(zip(left.tolist(), right.tolist(), strict=True)):
        image, other = rows[mine[i]]["image_id"], rows[held[j]]
        reason = f"image {image} is a near-duplicate of one in {other['split']}"
        found.setdefault(image, (reason, other["image_id"]))
    return {
        sample["question_id"]: found[image]
        for sample in samples
        for image in reversed(pictures(sample))  # the first one's reason comes last and stays
        if image in found
    }


def duplicates(
    samples: list[dict], trained: set[str], reviewed: set[str], images: pa.Table, settings: Evolve
) -> Found:
    """Samples about an image that is a near-duplicate, in content and quality, of another that stays.

    What an earlier iteration trained on stays before anything new, then the image with more reviewed samples, then the
    smaller id; groups are those of `duplicate_groups` in that order. images: of `compared`.
    """
    new = {sample["image_id"] for sample in samples}
    work = Counter(sample["image_id"] for sample in samples if sample["question_id"] in reviewed)
    ranked = sorted(new | trained, key=lambda image: (image not in trained, -work[image], image))
    place = pc.index_in(images["image_id"], value_set=pa.array(ranked, pa.string()))
    ranks = pc.utf8_lpad(pc.cast(place, pa.string()), 9, "0")  # owners are found in ascending order of ids
    table = images.set_column(images.schema.get_field_index("image_id"), "image_id", ranks).filter(pc.is_valid(place))
    owners = duplicate_groups(table, radius=settings.phash_radius, tolerance=settings.quality_tolerance)
    keepers = {ranked[int(rank)]: ranked[int(owner)] for rank, owner in owners.items() if rank != owner}
    return {
        sample["question_id"]: (f"image {sample['image_id']} is a near-duplicate", keepers[sample["image_id"]])
        for sample in samples
        if sample["image_id"] in keepers and sample["image_id"] not in trained
    }


def repeats(samples: list[dict], reviewed: set[str], settings: Evolve) -> Found:
    """Samples about an image whose description says what `tfidf_keep` others of this iteration say that stay.

    Earlier iterations are not counted, whichever way they are replayed (our choice): the loop asks again for what the
    model still fails at. Counted, they would take another 303 of 933 and 378 of 963 samples of two demos' second turn.
    """
    texts = {sample["question_id"]: sample["answer"] for sample in samples if sample["kind"] == "description"}
    similar = near_duplicate_texts(texts, reviewed, settings.tfidf_threshold, settings.tfidf_keep)
    image_of = {sample["question_id"]: sample["image_id"] for sample in samples}
    keepers = {image_of[name]: keeper for name, keeper in similar.items()}
    reason = f"image described within TF-IDF cosine {settings.tfidf_threshold} of {settings.tfidf_keep} kept"
    return {
        sample["question_id"]: (reason, keepers[sample["image_id"]])
        for sample in samples
        if sample["image_id"] in keepers
    }


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
