"""Failure prototypes: clusters of failures by what the image looks like and what was asked (paper Sec. 2.2).

Agglomerative clustering, N_c by the silhouette criterion; one linkage tree is built and cut many times. Each modality
is clustered on its own (our choice): in the space of a CLIP encoder modality outweighs everything else, so that one
tree over all failures is best cut into the modalities, whose means retrieve anything. Only the visual component of a
prototype is used for retrieval (Sec. 2.3).
"""

from collections import Counter

import numpy as np
import pyarrow as pa

from medq_ray.console import say
from medq_ray.schema import PROTOTYPE


def features(failures: pa.Table, visual: np.ndarray, text_weight: float) -> np.ndarray:
    """float64 (n, d): what is particular about the image beside `text_weight` times the unit TF-IDF vector of
    question, expected and given answer.

    failures: schema.FAILURE, n rows of one modality; visual: float32 (n, d_v), their images' embeddings, of which
    the common mean is removed and the rest scaled to length 1 in the root mean square, so that the weight means the
    same for every encoder. The paper says only that both kinds of content are combined; the rest is our choice.
    """
    visual = visual.astype(np.float64) - visual.mean(axis=0, dtype=np.float64)
    scale = np.sqrt((visual**2).sum(axis=1).mean())
    visual = visual / scale if scale > 1e-6 else np.zeros_like(visual)
    if text_weight == 0:
        return visual
    from sklearn.feature_extraction.text import TfidfVectorizer

    columns = (failures[name].to_pylist() for name in ("text", "expected", "given"))
    texts = [f"{asked} expected {expected} given {given}" for asked, expected, given in zip(*columns, strict=True)]
    return np.hstack([visual, text_weight * TfidfVectorizer().fit_transform(texts).toarray()])


def cluster(points: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """(label, silhouette) of each point, float64 (n, d).

    Average linkage on Euclidean distances; of the cuts into 2 ... `most` clusters the one with the highest mean
    silhouette wins, the coarsest among equals. Fewer than three distinct points leave nothing to choose: each is its
    own cluster, with silhouette NaN.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import pdist, squareform

    _, distinct = np.unique(points.round(6), axis=0, return_inverse=True)
    count = int(distinct.max()) + 1
    if count < 3:
        return distinct.ravel(), np.full(len(points), np.nan)
    from sklearn.metrics import silhouette_samples

    condensed = pdist(points)
    distances, tree = squareform(condensed), linkage(condensed, method="average")
    best, best_labels, best_values = -np.inf, None, None
    for clusters in range(2, min(most, count - 1) + 1):
        labels = fcluster(tree, clusters, criterion="maxclust")
        if labels.max() != clusters:  # equal merge heights cannot be cut apart
            continue
        values = silhouette_samples(distances, labels, metric="precomputed")
        if values.mean() > best + 1e-9:
            best, best_labels, best_values = values.mean(), labels, values
    if best_labels is None:
        return np.zeros(len(points), int), np.full(len(points), np.nan)
    return best_labels, best_values


def unit_mean(vectors: np.ndarray) -> np.ndarray:
    """Normalised mean of unit vectors, float32; the first one where they cancel out."""
    mean = vectors.astype(np.float64).mean(axis=0)
    length = np.linalg.norm(mean)
    return (mean / length if length > 1e-9 else vectors[0]).astype(np.float32)


def grouped(
    failures: pa.Table, visual: np.ndarray, text_weight: float, most: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """(row numbers of each cluster, the largest first; silhouette of each row). The modalities that fail share
    `most` evenly. Says where there was too little to cluster."""
    modality = np.array(failures["modality"].to_pylist())
    silhouettes = np.empty(len(modality))
    groups = []
    for name in np.unique(modality):
        rows = np.flatnonzero(modality == name)
        points = features(failures.take(rows), visual[rows], text_weight)
        labels, silhouettes[rows] = cluster(points, max(2, most // len(np.unique(modality))))
        groups += [rows[labels == label] for label in np.unique(labels)]
        if np.isnan(silhouettes[rows]).any():
            count = len(np.unique(labels))
            say(f"  {name}: {len(rows)} failures are too few or too alike to cluster; prototypes: {count}")
    return sorted(groups, key=lambda members: (-len(members), members[0])), silhouettes


def prototypes(failures: pa.Table, images: pa.Table, *, text_weight: float, most: int) -> pa.Table:
    """schema.PROTOTYPE of the failures, the largest cluster first; says what there was too little of to cluster.

    failures: schema.FAILURE; images: embedded images that include those of the failures; most: largest N_c. The
    visual component of a prototype is the normalised mean over its distinct images.
    """
    if failures.num_rows == 0:
        say("  no failures, hence no prototypes")
        return PROTOTYPE.empty_table()
    failures = failures.sort_by("question_id")
    row_of = {name: row for row, name in enumerate(images["image_id"].to_pylist())}
    rows = np.array([row_of[name] for name in failures["image_id"].to_pylist()])
    embeddings = images["embedding"].combine_chunks()
    embeddings = embeddings.flatten().to_numpy().reshape(len(embeddings), -1)
    groups, silhouettes = grouped(failures, embeddings[rows], text_weight, most)
    uris = images["uri"].to_pylist()
    names = images["image_id"].to_pylist()
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
    return pa.Table.from_pylist(table, schema=PROTOTYPE)
