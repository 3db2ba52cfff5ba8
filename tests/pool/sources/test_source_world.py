"""A world is a source like any other; what was made of the user's own images is the user's."""

import numpy as np
from PIL import Image

from medq_ray.images import pixel_digest
from medq_ray.pool.sources import Options, list_rows
from medq_ray.pool.sources.world import decode
from medq_ray.synthetic.world import read_world, write_world


def test_every_image_is_listed_with_its_split_and_patient(tmp_path):
    write_world(tmp_path / "w", 30, 1, size=56)
    images = {row["uri"]: row for row in read_world(tmp_path / "w").images.to_pylist()}
    rows = list(list_rows("world", tmp_path / "w", Options()))
    assert {row.path for row in rows} == set(images)
    for row in rows:
        known = images[row.path]
        assert (row.modality, row.patient, row.split) == (known["modality"], known["patient"], known["split"])
        assert not row.private
    assert pixel_digest(decode(rows[0], 2048)) == images[rows[0].path]["image_id"]


def test_what_was_made_of_real_images_is_private(tmp_path):
    for i in range(9):
        path = tmp_path / "ct" / f"patient{i}" / "scan.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (64, 64), np.uint8)).save(path)
    write_world(tmp_path / "w", 60, 1, size=56, base=tmp_path)
    rows = list(list_rows("world", tmp_path / "w", Options()))
    images = read_world(tmp_path / "w").images
    sources = dict(zip(images["uri"].to_pylist(), images["source"].to_pylist(), strict=True))
    assert {row.private for row in rows} == {True, False}
    assert all(row.private == (sources[row.path] == "synthetic-on-real") for row in rows)


def test_appointments_of_different_patients_have_different_names(tmp_path):
    write_world(tmp_path / "w", 30, 1, size=56)
    rows = [row for row in list_rows("world", tmp_path / "w", Options()) if row.session]
    assert rows and len({row.session for row in rows}) == len({(row.patient, row.session) for row in rows})
