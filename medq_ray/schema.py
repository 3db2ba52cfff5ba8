"""The vocabulary: what an image, question, completion, prototype, annotation and verdict are, as Arrow schemas.

Floor 0: imports nothing of ours. Tables are the only thing that phases hand to each other, so a column that is
not listed here does not exist. Pixels never enter a table: rows point to images by `uri`.
"""

from typing import Protocol

import numpy as np
import pyarrow as pa

MODALITIES = ("mri", "ct", "endoscopy", "fundus", "histopathology")
SEVERITIES = ("none", "mild", "severe")
GRADES = ("good", "usable", "reject")
"""The overall judgement that goes with each severity, in the same order (MedQ-Bench's three levels)."""
KINDS = ("yes_no", "what", "how", "description")
PERCEPTION_KINDS = ("yes_no", "what", "how")
SPLITS = ("pool", "dev", "test")

EVERYDAY = ("blur", "noise", "exposure")
"""Degradations that every photograph knows; all others are specific to a modality."""
DEGRADATIONS = {
    "mri": ("blur", "noise", "motion", "undersampling", "bias_field"),
    "ct": ("blur", "noise", "metal", "ring", "sparse_view"),
    "endoscopy": ("blur", "exposure", "specular", "bubbles", "smoke"),
    "fundus": ("blur", "exposure", "uneven_illumination", "haze", "color_distortion"),
    "histopathology": ("blur", "exposure", "stain", "fold", "air_bubble"),
}
"""Modality -> its degradations (18 distinct). A clean image has degradation 'none'."""

IMAGE = pa.schema(
    [
        ("image_id", pa.string()),  # images.pixel_digest: the same pixels have the same id in any container
        ("uri", pa.string()),  # absolute path
        ("split", pa.string()),
        ("modality", pa.string()),
        ("source", pa.string()),
        ("patient", pa.string()),  # salted hash or synthetic key, never a name
        ("session", pa.string()),
    ]
)
"""One image of a world or pool, without its truth."""

TRUTH = pa.schema(
    [
        ("image_id", pa.string()),
        ("split", pa.string()),
        ("modality", pa.string()),
        ("anatomy", pa.string()),
        ("degradation", pa.string()),
        ("severity", pa.string()),
        ("parameters", pa.string()),  # JSON: what the operator drew
        ("patient", pa.string()),
        ("session", pa.string()),
        ("base", pa.string()),  # 'phantom', or 'real' where an image of the user's was degraded
    ]
)
"""What the synthetic world knows of an image; only the simulated oracle and the simulated expert may look."""


THUMB = pa.binary(256)
"""16 x 16 grey levels."""

LISTED = pa.schema(
    [
        ("item", pa.string()),  # keyed hash of source, path, key, size and time of change of the file
        ("found", pa.string()),  # the same of what `find` said of the file: equal means nothing to open again
        ("uri", pa.string()),  # absolute path of the file
        ("key", pa.string()),  # which image in it
        ("source", pa.string()),
        ("modality", pa.string()),
        ("release", pa.string()),  # the split that the release puts it into, or ''
        ("split", pa.string()),
        ("patient", pa.string()),  # salted hash; '' where the source does not say
        ("session", pa.string()),  # salted hash
        ("licence", pa.string()),  # the source's terms (pool.sources.Terms)
        ("share", pa.bool_()),
        ("train", pa.bool_()),
        ("labels", pa.string()),  # JSON: the source's own quality labels
        ("problem", pa.string()),  # '' or 'step: why the file cannot be listed'
    ]
)
"""One image as its source describes it. The only table with paths; it never leaves the pool's private folder."""


def looked_schema(dim: int) -> pa.Schema:
    """What ingest computes of a listed image: pHash (64 bits as uint64), measures, unit embedding of `dim` floats."""
    return pa.schema(
        [
            ("item", pa.string()),
            ("image_id", pa.string()),  # '' if there is a problem
            ("problem", pa.string()),  # '' or 'step: reason'; the numbers are then zero
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("phash", pa.uint64()),
            ("sharpness", pa.float32()),
            ("noise", pa.float32()),
            ("thumb", THUMB),
            ("digest", pa.string()),  # of the columns before and the embedding
            ("embedding", pa.list_(pa.field("element", pa.float32(), nullable=False), dim)),  # read faster
        ]
    )


POOL_IMAGE = pa.schema(
    [
        *IMAGE,
        ("proven", pa.bool_()),  # the source says whose image it is; else the patient is a cluster of look-alikes
        ("licence", pa.string()),
        ("share", pa.bool_()),  # its pixels may be sent to somebody else's service
        ("train", pa.bool_()),  # models may be trained on it
        ("labels", pa.string()),  # JSON: the source's own quality labels
        ("phash", pa.uint64()),
        ("sharpness", pa.float32()),
        ("noise", pa.float32()),
        ("thumb", THUMB),
    ]
)
"""One image of a pool as the phases see it: no path (uri is ''), no embedding."""


def embedded_image_schema(dim: int) -> pa.Schema:
    """POOL_IMAGE with its unit embedding of `dim` floats."""
    return pa.schema([*POOL_IMAGE, ("embedding", pa.list_(pa.float32(), dim))])


QUESTION = pa.schema(
    [
        ("question_id", pa.string()),
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("kind", pa.string()),
        ("scope", pa.string()),  # general | specific
        ("modality", pa.string()),
        ("text", pa.string()),
        ("options", pa.list_(pa.string())),  # lettered A, B, ... in this order; empty for descriptions
        ("answer", pa.string()),  # the right letter or the reference description; '' where nobody knows yet
        ("capabilities", pa.list_(pa.string())),  # the multi-hot vector c of eq. 1, as 'axis:value' names
        ("second_id", pa.string()),  # image B of a comparison, else null
        ("second_uri", pa.string()),
    ]
)

BENCH_QUESTION = pa.schema(
    [
        *QUESTION,  # an option that the release leaves out is '': letters keep their places
        ("task", pa.string()),  # perception | description | comparison
        ("extra", pa.string()),  # JSON: columns of the release that we do not know, kept as they are
    ]
)
"""A question of a published benchmark. `kind` is 'comparison' for that task; `severity` and the like are among the
capabilities where the release names them; `answer` is the letter, or the reference text."""

PROMPT = pa.schema([("question_id", pa.string()), ("uris", pa.list_(pa.string())), ("prompt", pa.string())])
"""What is sent to a model: no, one or more images in their order, then the text."""

COMPLETION = pa.schema(
    [
        ("question_id", pa.string()),
        ("run", pa.int32()),
        ("model", pa.string()),  # as it was asked for
        ("served_model", pa.string()),  # as the endpoint calls itself; '' where it does not
        ("fingerprint", pa.string()),  # the engine's system_fingerprint; '' where it has none
        ("temperature", pa.float64()),
        ("seed", pa.int64()),
        ("text", pa.string()),  # '' when failed
        ("entropy", pa.float64()),  # eq. 3; null without logprobs
        ("logprobs", pa.list_(pa.float32())),  # of the sampled tokens, in nats; null where the endpoint gives none
        ("tokens", pa.int32()),
        ("prompt_tokens", pa.int32()),  # null where the endpoint does not say
        ("image_tokens", pa.int32()),  # of the prompt's tokens; null where the endpoint does not say
        ("finish_reason", pa.string()),
        ("error", pa.string()),  # '' or why the endpoint gave no answer
    ]
)
"""One answer of one run. `entropy` is the paper's trajectory entropy: the mean negative log-likelihood of the
sampled tokens in nats (eq. 3 calls this an entropy; it is an estimate of one)."""

SCORE = pa.schema(
    [
        ("question_id", pa.string()),
        ("kind", pa.string()),
        ("modality", pa.string()),
        ("patient", pa.string()),  # or the image, where nobody knows whose it is
        ("capabilities", pa.list_(pa.string())),
        ("right", pa.list_(pa.bool_())),  # of each run; null where it failed
        ("wrong", pa.int32()),  # runs; unparsed ones among them, failed ones not
        ("unparsed", pa.int32()),
        ("failed", pa.int32()),  # runs that the endpoint gave no answer to
        ("error_rate", pa.float64()),  # wrong / (runs - failed): what the model did; null when all runs failed
        ("failure", pa.bool_()),  # error_rate > gamma, strictly
    ]
)
"""What became of one question."""

JUDGEMENT = pa.schema(
    [
        ("question_id", pa.string()),
        ("task", pa.string()),  # description | comparison
        ("round", pa.int32()),
        ("axis", pa.string()),  # completeness | preciseness | consistency | quality_accuracy
        ("score", pa.float64()),  # as parsed, 0 to 2 if the judge keeps to its scale; null when no attempt gave one
        ("attempts", pa.int32()),
        ("reply", pa.string()),  # the judge's last
        ("judge", pa.string()),
        ("wording", pa.string()),  # official | own wording
    ]
)
"""One score of one axis in one judge round."""

FAILURE = pa.schema(
    [
        ("question_id", pa.string()),
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("kind", pa.string()),
        ("modality", pa.string()),
        ("text", pa.string()),  # the question
        ("expected", pa.string()),  # in words: the option, not its letter
        ("given", pa.string()),  # the most frequent reply of the runs, in words
        ("error_rate", pa.float64()),
        ("capabilities", pa.list_(pa.string())),
    ]
)
"""One member of the failure pool B."""

PROTOTYPE = pa.schema(
    [
        ("prototype_id", pa.int32()),
        ("size", pa.int32()),
        ("members", pa.list_(pa.string())),  # question ids
        ("medoid", pa.string()),  # image id nearest to the visual component
        ("medoid_uri", pa.string()),
        ("silhouette", pa.float64()),
        ("cohesion", pa.float64()),  # mean cosine of member images to the visual component
        ("capabilities", pa.map_(pa.string(), pa.float64())),  # share of members that have each capability
        ("visual", pa.list_(pa.float32())),  # p_j^vis of eq. 2, unit length
    ]
)

HIT = pa.schema([("image_id", pa.string()), ("prototype_id", pa.int32()), ("similarity", pa.float32())])

SELECTION = pa.schema(
    [
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("modality", pa.string()),
        ("patient", pa.string()),
        ("strategy", pa.string()),  # what drew it: config.Explore.strategy, or random
        ("capability", pa.string()),  # the share that paid for it; '' where no weakness did
        ("prototype_id", pa.int32()),  # null where no prototype retrieved it
        ("similarity", pa.float32()),
        ("score", pa.float32()),  # what ranked it among others of its strategy; null for random draws
    ]
)
"""An image that was chosen to be annotated, and why."""

SHARE = pa.schema(
    [
        ("name", pa.string()),  # a capability, or 'prototype 3'
        ("error_rate", pa.float64()),  # e_k of eq. 1; null for a prototype
        ("weight", pa.float64()),  # w_k, of all shares 1
        ("quota", pa.int32()),  # images that the weight entitles it to
        ("look_alikes", pa.int32()),  # retrieved images, near-duplicates among them
        ("drawn", pa.int32()),  # images, less than the quota where look-alikes are few, more where others gave back
    ]
)
"""How the budget of an iteration was split."""

ANNOTATION = pa.schema(
    [
        ("question_id", pa.string()),
        ("image_id", pa.string()),
        ("oracle_text", pa.string()),
        ("oracle_model", pa.string()),
        ("oracle_simulated", pa.bool_()),
        ("self_text", pa.string()),
        ("self_model", pa.string()),
        ("entropy", pa.float64()),  # of the self annotation
        ("entropy_again", pa.float64()),  # of the share that is annotated twice, else null
        ("agreement", pa.float64()),  # delta^ann in [0, 1]
        ("tau_entropy", pa.float64()),  # the thresholds that routed it; null at cold start
        ("tau_agreement", pa.float64()),
        ("dead_band", pa.float64()),
        ("route", pa.string()),  # cold_start | oracle | expert | self | dropped
        ("audit", pa.bool_()),  # an expert looks although the route asks for none
        ("reason", pa.string()),
        ("label", pa.string()),  # the annotation put forward: to training or, on an expert route, to the expert
        ("labelled_by", pa.string()),  # oracle | self
    ]
)

VERDICT = pa.schema(
    [
        ("question_id", pa.string()),
        ("image_id", pa.string()),
        ("action", pa.string()),  # accept | edit | reject
        ("before", pa.string()),
        ("after", pa.string()),  # '' when rejected
        ("reviewer", pa.string()),
        ("simulated", pa.bool_()),
        ("seconds", pa.float64()),  # the reviewer's active time
    ]
)

SAMPLE = pa.schema(
    [
        ("question_id", pa.string()),
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("kind", pa.string()),
        ("modality", pa.string()),
        ("second_id", pa.string()),  # image B of a comparison, else null
        ("second_uri", pa.string()),
        ("prompt", pa.string()),
        ("options", pa.list_(pa.string())),  # as the prompt letters them: not always in the order they were asked in
        ("answer", pa.string()),
        ("capabilities", pa.list_(pa.string())),  # of the question
        ("route", pa.string()),
        ("labelled_by", pa.string()),  # oracle | self | the reviewer's name
        ("simulated", pa.bool_()),  # True if a simulated oracle or expert made the label
        ("iteration", pa.int32()),
    ]
)

CHAT = pa.schema(
    [
        ("question_id", pa.string()),
        ("messages", pa.list_(pa.struct([
            ("role", pa.string()),  # user | assistant
            ("content", pa.list_(pa.struct([("type", pa.string()), ("text", pa.string())]))),  # image | text; or null
        ]))),
        ("images", pa.list_(pa.string())),  # uris, in the order of the image parts
        ("image_ids", pa.list_(pa.string())),
        ("sources", pa.list_(pa.string())),  # of each image
        ("licences", pa.list_(pa.string())),
        *((name, SAMPLE.field(name).type) for name in
          ("kind", "modality", "capabilities", "route", "labelled_by", "simulated", "iteration")),
    ]
)  # fmt: skip
"""A sample as chat messages with images, by uri: what trainers of any make can be given."""

DROP = pa.schema(
    [
        ("id", pa.string()),
        ("step", pa.string()),  # the rule that dropped it
        ("reason", pa.string()),
        ("keeper", pa.string()),  # id of the row that stays in its place, or ''
    ]
)
"""A dropped row is data: every filter writes these beside what it kept."""


class Encoder(Protocol):
    """Turns images and texts into unit vectors of one space."""

    dim: int

    def images(self, pixels: list[np.ndarray]) -> np.ndarray:
        """uint8 (H, W, 3) arrays -> float32 (N, dim), rows of unit length."""

    def texts(self, texts: list[str]) -> np.ndarray:
        """strings -> float32 (N, dim), rows of unit length."""
