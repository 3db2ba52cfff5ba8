"""Failure prototypes: clusters of failures by what the image looks like and what was asked (paper Sec. 2.2).

Each modality is clustered on its own (our choice): in the space of a CLIP encoder modality outweighs everything else,
so that one tree over all failures is best cut into the modalities, whose means retrieve anything. Only the visual
component of a prototype is used for retrieval (Sec. 2.3).
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from medq_ray.console import say
from medq_ray.evaluate.clusters import Clusters, cluster
from medq_ray.questions import cell_of
from medq_ray.schema import PROTOTYPE

Texts = Callable[[list[str]], np.ndarray]
"""texts(n strings) -> float (n, d)."""
CLOUDS = 19
"""Clusterings of clouds without clusters that the silhouette is compared with: p is 0.05 at best."""
COMPARED = 2_000
"""Most failures of a modality in that comparison, at even places; 19 trees of as many take five seconds."""


def tfidf(texts: list[str]) -> np.ndarray:
    """Unit TF-IDF vectors of these texts, of the 2,048 most frequent words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(max_features=2048).fit_transform(texts).toarray()


def scaled(rows: np.ndarray) -> np.ndarray:
    """float64: the rows less their mean, of length 1 in the root mean square; all 0 where they are all alike. A weight
    then means the same for every encoder."""
    rows = rows - rows.mean(axis=0, dtype=np.float64)
    length = np.sqrt((rows**2).sum(axis=1).mean())
    return rows / length if length > 1e-6 else np.zeros_like(rows)


def reach(rows: np.ndarray) -> np.ndarray:
    """Standard deviations of rows (n, d) along their d principal components: which way these point changes no
    distance between rows that are drawn along them."""
    if not rows.size:
        return np.zeros(rows.shape[1])
    found = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False) / np.sqrt(len(rows))
    return np.pad(found, (0, rows.shape[1] - len(found)))


@dataclass(frozen=True)
class Features:
    """What the failures of one modality are clustered by: what is particular about the image, and about the question
    and its answers. The paper says only that both kinds of content are combined; the rest is our choice."""

    image: np.ndarray
    """int (n,): number of each failure's image."""
    visual: np.ndarray
    """float64 (images, d), scaled over the failures."""
    text: np.ndarray
    """float64 (n, d), scaled and times its weight."""

    @classmethod
    def of(cls, image_ids: list[str], embeddings: np.ndarray, said: np.ndarray, weight: float) -> "Features":
        """embeddings: (n, d), of the failures' images; said: (n, e), of what was asked and answered; weight: of the
        latter, beside 1 for the image."""
        _, first, image = np.unique(image_ids, return_index=True, return_inverse=True)
        return cls(image, scaled(embeddings.astype(np.float64))[first], weight * scaled(said))

    def joined(self) -> np.ndarray:
        """float64 (n, d)"""
        return np.hstack([self.visual[self.image], self.text])

    def cloud(self, rng: np.random.Generator) -> "Features":
        """As many images and questions drawn from one normal cloud that reaches as far in every direction: no clusters,
        but several failures about one image as here (the null hypothesis of SigClust, Liu et al. 2008). Our choice
        instead of shuffled features: shuffling also destroys correlations, so that anything looks like clusters."""
        visual, text = (reach(rows) * rng.standard_normal(rows.shape) for rows in (self.visual, self.text))
        return Features(self.image, visual, text)

    def part(self, count: int) -> "Features":
        """Of `count` failures at even places."""
        rows = np.linspace(0, len(self.image) - 1, count).round().astype(int)
        images, image = np.unique(self.image[rows], return_inverse=True)
        return Features(image, self.visual[images], self.text[rows])


def quality(features: Features, found: Clusters, cells: list[str], most: int) -> dict:
    """Whether clusters are more than chance would make: {failures, prototypes, silhouette, chance, p, agreement}.

    chance: the mean silhouette of CLOUDS clusterings of `Features.cloud`; p: the share of them that are as good,
    ours included (COMPARED failures at most); agreement: adjusted mutual information with `cells`, the failures' true
    modality x degradation. Null where there was nothing to choose.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    result = {"failures": len(cells), "prototypes": found.count, "silhouette": None, "chance": None, "p": None,
              "agreement": round(float(adjusted_mutual_info_score(cells, found.labels)), 6)}  # fmt: skip
    if np.isnan(found.silhouettes).any():
        return result
    reference = features, found
    if len(cells) > COMPARED:
        part = features.part(COMPARED)
        reference = part, cluster(part.joined(), most)
        if np.isnan(reference[1].silhouettes).any():
            return result
    rng = np.random.default_rng(0)
    clouds = (cluster(reference[0].cloud(rng).joined(), most).silhouette for _ in range(CLOUDS))
    chance = np.nan_to_num(np.array(list(clouds)))  # one cluster is no structure
    beaten = int((chance >= reference[1].silhouette).sum())
    return result | {
        "silhouette": round(found.silhouette, 6),
        "chance": round(float(chance.mean()), 6),
        "p": round((1 + beaten) / (1 + CLOUDS), 6),
    }


def describe(modality: str, found: dict) -> str:
    """The quality of a modality's clusters in one line."""
    head = f"  {modality}: {found['failures']} failures"
    if found["silhouette"] is None:
        return f"{head} are too few or too alike to cluster; prototypes: {found['prototypes']}"
    better = "better than" if found["p"] <= 0.05 else "NO better than"
    return (
        f"{head} in {found['prototypes']} prototypes; silhouette {found['silhouette']:.2f}, {better} that of a cloud "
        f"without clusters, {found['chance']:.2f} (p = {found['p']:.2f}); agreement with cells {found['agreement']:.2f}"
    )


def unit_mean(vectors: np.ndarray) -> np.ndarray:
    """Normalised mean of unit vectors, float32; the first one where they cancel out."""
    mean = vectors.astype(np.float64).mean(axis=0)
    length = np.linalg.norm(mean)
    return (mean / length if length > 1e-9 else vectors[0]).astype(np.float32)


def said(failures: pa.Table) -> list[str]:
    """What was asked, expected and given, in one line each."""
    columns = (failures[name].to_pylist() for name in ("text", "expected", "given"))
    return [f"{asked} expected {expected} given {given}" for asked, expected, given in zip(*columns, strict=True)]


def grouped(
    failures: pa.Table, embeddings: np.ndarray, texts: Texts, weight: float, most: int
) -> tuple[list[np.ndarray], np.ndarray, dict[str, dict]]:
    """(row numbers of each cluster, the largest first; silhouette of each row; `quality` of each modality).

    embeddings: of the failures' images. The modalities that fail share `most` evenly.
    """
    modality = np.array(failures["modality"].to_pylist())
    silhouettes, spoken = np.empty(len(modality)), np.zeros((len(modality), 0))
    if weight:
        spoken = texts(said(failures))
    groups, report = [], {}
    for name in np.unique(modality):
        rows = np.flatnonzero(modality == name)
        own, share = failures.take(rows), max(2, most // len(np.unique(modality)))
        features = Features.of(own["image_id"].to_pylist(), embeddings[rows], spoken[rows], weight)
        found = cluster(features.joined(), share)
        silhouettes[rows] = found.silhouettes
        groups += [rows[found.labels == label] for label in range(found.count)]
        report[str(name)] = quality(features, found, [cell_of(vector) for vector in own["capabilities"].to_pylist()],
                                    share)  # fmt: skip
        say(describe(name, report[str(name)]))
    return sorted(groups, key=lambda members: (-len(members), members[0])), silhouettes, report


def prototypes(
    failures: pa.Table, images: pa.Table, *, texts: Texts, weight: float, most: int
) -> tuple[pa.Table, dict[str, dict]]:
    """(schema.PROTOTYPE of the failures, the largest cluster first; modality -> `quality`). Says how good they are.

    failures: schema.FAILURE; images: embedded images that include those of the failures; texts: embeds what was asked
    and answered; weight: of it beside the image; most: largest N_c. The visual component of a prototype is the
    normalised mean over its distinct images.
    """
    if failures.num_rows == 0:
        say("  no failures, hence no prototypes")
        return PROTOTYPE.empty_table(), {}
    failures = failures.sort_by("question_id")
    names, uris = images["image_id"].to_pylist(), images["uri"].to_pylist()
    row_of = {name: row for row, name in enumerate(names)}
    rows = np.array([row_of[name] for name in failures["image_id"].to_pylist()])
    embeddings = images["embedding"].combine_chunks()
    embeddings = embeddings.flatten().to_numpy().reshape(len(embeddings), -1)
    groups, silhouettes, report = grouped(failures, embeddings[rows], texts, weight, most)
    table = []
    for prototype_id, members in enumerate(groups):
        own = failures.take(members)
        pictures = sorted({rows[member] for member in members}, key=lambda row: names[row])
        visual = unit_mean(embeddings[pictures])
        cosine = embeddings[pictures] @ visual
        medoid = pictures[int(cosine.argmax())]
        shares = Counter(capability for vector in own["capabilities"].to_pylist() for capability in vector)
        silhouette = float(silhouettes[members].mean())
        table.append(
            {
                "prototype_id": prototype_id,
                "size": len(members),
                "members": own["question_id"].to_pylist(),
                "medoid": names[medoid],
                "medoid_uri": uris[medoid],
                "silhouette": None if np.isnan(silhouette) else silhouette,
                "cohesion": float(cosine.mean()),
                "capabilities": [(name, n / len(members)) for name, n in sorted(shares.items())],
                "visual": visual.tolist(),
            }
        )
    return pa.Table.from_pylist(table, schema=PROTOTYPE), report
