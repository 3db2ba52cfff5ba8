"""Clusters recover planted failures; degenerate inputs are handled and said; order does not matter."""

import numpy as np
import pyarrow as pa
import pytest

from medq_ray.evaluate.clusters import cluster
from medq_ray.evaluate.prototypes import prototypes, tfidf
from medq_ray.questions import capabilities
from medq_ray.schema import FAILURE, PROTOTYPE, embedded_image_schema

CELLS = [("mri", "motion"), ("ct", "metal"), ("ct", "ring"), ("mri", "bias_field")]


def units(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def planted(count: int, spread: float = 0.15, dim: int = 16, kinds: tuple[str, ...] = ("what", "how")):
    """(FAILURE, embedded images, cell of each image): images scattered around one direction for each cell."""
    rng = np.random.default_rng(0)
    centres = units(rng.standard_normal((len(CELLS), dim)))
    images, failures, cells = [], [], {}
    for i in range(count):
        modality, degradation = CELLS[i % len(CELLS)]
        name = f"{i:016x}"
        vector = units(centres[i % len(CELLS)][None] + spread * rng.standard_normal((1, dim)))[0]
        cells[name] = (modality, degradation)
        images.append({"image_id": name, "uri": f"/{name}", "split": "dev", "modality": modality, "source": "s",
                       "patient": name, "session": name, "phash": i, "sharpness": 1.0, "noise": 1.0,
                       "embedding": vector.tolist()})  # fmt: skip
        for kind in kinds:
            failures.append({"question_id": f"{name}-{kind}", "image_id": name, "uri": f"/{name}", "kind": kind,
                             "modality": modality, "text": f"{kind} about {modality}?", "expected": degradation,
                             "given": "none of these", "error_rate": 1.0,
                             "capabilities": capabilities(kind, modality, degradation, "mild")})  # fmt: skip
    return (
        pa.Table.from_pylist(failures, schema=FAILURE),
        pa.Table.from_pylist(images, schema=embedded_image_schema(dim)),
        cells,
    )


def test_planted_cells_are_recovered():
    from sklearn.metrics import adjusted_rand_score

    failures, images, cells = planted(60)
    table = prototypes(failures, images, texts=tfidf, weight=0.25, most=12)[0]
    assert table.schema == PROTOTYPE
    label = {name: row["prototype_id"] for row in table.to_pylist() for name in row["members"]}
    assert sorted(label) == sorted(failures["question_id"].to_pylist())
    truth = [str(cells[name.split("-")[0]]) for name in label]
    assert adjusted_rand_score(truth, list(label.values())) >= 0.9


def test_a_prototype_describes_its_members():
    failures, images, _ = planted(40)
    rows = prototypes(failures, images, texts=tfidf, weight=0.25, most=12)[0].to_pylist()
    assert [row["prototype_id"] for row in rows] == list(range(len(rows)))
    assert [row["size"] for row in rows] == sorted((len(row["members"]) for row in rows), reverse=True)
    vectors = dict(zip(images["image_id"].to_pylist(), np.array(images["embedding"].to_pylist()), strict=True))
    for row in rows:
        own = {name.split("-")[0] for name in row["members"]}
        assert np.linalg.norm(row["visual"]) == pytest.approx(1, abs=1e-6)
        assert np.array(row["visual"]) == pytest.approx(units(sum(vectors[i] for i in own)[None])[0], abs=1e-5)
        assert row["medoid"] in own and row["medoid_uri"] == "/" + row["medoid"]
        mixture = dict(row["capabilities"])
        assert list(mixture) == sorted(mixture)
        for axis in ("kind", "modality", "cell"):
            assert sum(v for k, v in mixture.items() if k.startswith(axis + ":")) == pytest.approx(1)
        assert row["cohesion"] > 0.8 and 0 < row["silhouette"] <= 1


def test_order_of_rows_changes_nothing():
    failures, images, _ = planted(24)
    rng = np.random.default_rng(1)
    shuffled = prototypes(
        failures.take(rng.permutation(failures.num_rows)),
        images.take(rng.permutation(images.num_rows)),
        texts=tfidf,
        weight=0.25,
        most=12,
    )[0]
    assert shuffled.equals(prototypes(failures, images, texts=tfidf, weight=0.25, most=12)[0])


def test_a_prototype_has_one_modality_even_if_modalities_look_alike():
    failures, images, _ = planted(24)
    flat = pa.array([[1.0] + [0.0] * 15] * 24, images.schema.field("embedding").type)
    images = images.set_column(images.schema.get_field_index("embedding"), images.schema.field("embedding"), flat)
    modality = dict(zip(failures["question_id"].to_pylist(), failures["modality"].to_pylist(), strict=True))
    for row in prototypes(failures, images, texts=tfidf, weight=0.25, most=12)[0].to_pylist():
        assert len({modality[name] for name in row["members"]}) == 1


@pytest.mark.parametrize("scale", [0.05, 1.0])
def test_a_common_direction_of_all_images_changes_no_cluster(scale):
    """Encoders put all images into a narrow cone; the clusters must not depend on how narrow."""
    failures, images, cells = planted(40)
    vectors = np.array(images["embedding"].to_pylist())
    cone = units(np.eye(16)[0] + scale * vectors)
    column = pa.FixedSizeListArray.from_arrays(pa.array(cone.ravel()), 16)
    images = images.set_column(images.schema.get_field_index("embedding"), images.schema.field("embedding"), column)
    for row in prototypes(failures, images, texts=tfidf, weight=0.25, most=12)[0].to_pylist():
        assert len({cells[name.split("-")[0]] for name in row["members"]}) == 1


def test_a_text_tower_is_loaded_once_however_many_modalities_fail():
    failures, images, _ = planted(40)
    calls = []
    prototypes(failures, images, texts=lambda texts: calls.append(len(texts)) or tfidf(texts), weight=0.25, most=12)
    assert calls == [80]


@pytest.mark.parametrize(("count", "clusters"), [(0, 0), (1, 1), (2, 2)])
def test_few_failures_are_handled_and_said(count, clusters, capsys):
    failures, images, _ = planted(4, kinds=("what",))
    table = prototypes(failures.slice(0, count), images, texts=tfidf, weight=0.25, most=12)[0]
    assert table.num_rows == clusters and sum(table["size"].to_pylist()) == count
    assert table["silhouette"].null_count == clusters
    assert "failures" in capsys.readouterr().out


def test_identical_failures_are_one_prototype(capsys):
    failures, images, _ = planted(1, kinds=("what",))
    copies = pa.concat_tables([failures] * 5)
    table, quality = prototypes(copies, images, texts=tfidf, weight=0.25, most=12)
    assert table["size"].to_pylist() == [5] and quality["mri"]["p"] is None
    assert "too alike" in capsys.readouterr().out


def test_no_more_clusters_than_allowed_and_the_best_silhouette_wins():
    from sklearn.metrics import silhouette_score

    points = np.random.default_rng(0).standard_normal((60, 3)) + 6 * np.repeat(np.eye(3), 20, axis=0)
    found = cluster(points, 10)
    assert found.count == 3 and found.silhouette == pytest.approx(silhouette_score(points, found.labels))
    assert cluster(points, 2).count == 2


def test_points_at_equal_distances_make_one_cluster_instead_of_an_arbitrary_cut():
    found = cluster(np.eye(4), 3)
    assert found.count == 1 and np.isnan(found.silhouettes).all()


def test_clusters_of_planted_cells_are_better_than_chance_and_of_noise_are_not(capsys):
    failures, images, _ = planted(80)
    quality = prototypes(failures, images, texts=tfidf, weight=0.25, most=12)[1]
    assert set(quality) == {"ct", "mri"}
    for found in quality.values():
        assert found["p"] == 0.05 and found["silhouette"] > found["chance"] + 0.1 and found["agreement"] == 1
    assert "better than that of a cloud" in capsys.readouterr().out
    failures, images, _ = planted(80, spread=100.0)
    quality = prototypes(failures, images, texts=tfidf, weight=0, most=12)[1]
    assert all(found["p"] > 0.05 and found["agreement"] < 0.3 for found in quality.values())
    assert "NO better than that of a cloud" in capsys.readouterr().out


def test_a_cloud_that_is_long_in_one_direction_has_no_clusters():
    """Its halves make a high silhouette, and so do those of any cloud as long."""
    failures, images, _ = planted(80, kinds=("what",))
    rng = np.random.default_rng(0)
    way = units(rng.standard_normal((1, 16)))[0]
    cloud = rng.standard_normal((80, 16)) + 8 * rng.standard_normal((80, 1)) * way
    column = pa.FixedSizeListArray.from_arrays(pa.array(cloud.astype(np.float32).ravel()), 16)
    images = images.set_column(images.schema.get_field_index("embedding"), images.schema.field("embedding"), column)
    for found in prototypes(failures, images, texts=tfidf, weight=0, most=12)[1].values():
        assert found["silhouette"] > 0.3 and found["p"] > 0.05
