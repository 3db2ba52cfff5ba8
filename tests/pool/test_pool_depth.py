"""What lies beside the pictures that a pool hands out: all bits, where its sources have them."""

import numpy as np
import pytest
from test_dicom import dicom_file

from medq_ray.depth import beside, read_depth
from medq_ray.images import encode_png, read_image
from medq_ray.pool.ingest import ingest
from medq_ray.pool.splits import verify
from medq_ray.pool.store import open_pool


@pytest.mark.engine
def test_pictures_with_more_than_eight_bits_have_them_beside(tmp_path, ray_local):
    rng, root = np.random.default_rng(0), tmp_path / "root"
    (root / "endoscopy").mkdir(parents=True)
    values = rng.integers(0, 3000, (300, 200)).astype(np.int16)
    dicom = dicom_file(values, RescaleSlope=1, RescaleIntercept=-1024, PixelSpacing=[0.5, 0.5])
    (root / "one.dcm").write_bytes(dicom.getvalue())
    (root / "endoscopy/two.png").write_bytes(encode_png(rng.integers(0, 255, (80, 90, 3)).astype(np.uint8)))
    ingest("dicom", root, tmp_path / "pool", side=150)
    ingest("images", root, tmp_path / "pool", side=150)
    pool = open_pool(tmp_path / "pool")
    verify(pool)
    known = {row["image_id"]: row["modality"] for row in pool.images().to_pylist()}
    paths = {known[name]: path for name, path in pool.fetch(known, tmp_path / "png").items()}
    assert set(paths) == {"ct", "endoscopy"} and not beside(paths["endoscopy"]).exists()
    depth = read_depth(beside(paths["ct"]))
    assert depth.numbers.shape == read_image(paths["ct"]).shape[:2] == (150, 100)
    assert depth.meaning.unit == "HU" and depth.meaning.spacing == (1.0, 1.0)  # reduced by half
