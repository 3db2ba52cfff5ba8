"""Ingest keeps what it can read, quarantines the rest with reasons, and refuses leaking splits."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from medq_ray.artifacts import read_table
from medq_ray.config import Encoder
from medq_ray.images import pixel_digest
from medq_ray.pool.hashing import phash, quality
from medq_ray.pool.ingest import Embed, check, first_of_each, ingest
from medq_ray.schema import DROP, IMAGE


class MeanColour:
    """An encoder that can be checked by hand: mean colour, scaled to unit length."""

    dim = 3

    def images(self, pixels):
        means = np.array([p.mean(axis=(0, 1)) for p in pixels]) + 1
        return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)


def write(folder: Path, seed: int, split: str = "pool", name: str | None = None) -> tuple[dict, np.ndarray]:
    """One image file of random blocks and its IMAGE row."""
    blocks = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    pixels = np.kron(blocks, np.ones((8, 8, 1), np.uint8))
    path = folder / (name or f"{seed}.png")
    Image.fromarray(pixels).save(path)
    row = {"image_id": pixel_digest(pixels), "uri": str(path), "split": split, "modality": "ct", "source": "s",
           "patient": f"{split}-{seed}", "session": "1"}  # fmt: skip
    return row, pixels


def table(rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=IMAGE)


def damaged(tmp_path: Path) -> tuple[list[dict], list[np.ndarray]]:
    """Six rows: 0 to 2 good, 3 truncated, 4 missing, 5 with other pixels than its id says."""
    rows, pixels = zip(*(write(tmp_path, seed) for seed in range(6)), strict=True)
    truncated = Path(rows[3]["uri"])
    truncated.write_bytes(truncated.read_bytes()[:120])
    Path(rows[4]["uri"]).unlink()
    Image.fromarray(pixels[0]).save(rows[5]["uri"])
    return list(rows), list(pixels)


def test_a_batch_survives_bad_files_and_carries_no_pixels(tmp_path):
    rows, pixels = damaged(tmp_path)
    embed = object.__new__(Embed)  # without the model that its __init__ loads
    embed.encoder = MeanColour()
    out = embed(table(rows)).to_pylist()
    assert [row["problem"].split(":")[0] for row in out] == ["", "", "", "decode", "decode", "digest"]
    for row, image in zip(out[:3], pixels, strict=False):
        assert row["phash"] == phash(image)
        assert (row["sharpness"], row["noise"]) == pytest.approx(quality(image), rel=1e-6)
        assert row["embedding"] == pytest.approx(MeanColour().images([image])[0])
    assert set(out[0]) == {*IMAGE.names, "phash", "sharpness", "noise", "embedding", "problem"}


def test_the_smallest_uri_of_equal_pixels_stays(tmp_path):
    rows = [write(tmp_path, 1, name=name)[0] for name in ("c.png", "a.bmp", "b.png")] + [write(tmp_path, 2)[0]]
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(4)
        kept, drops = first_of_each(table([rows[i] for i in order]))
        assert sorted(Path(uri).name for uri in kept["uri"].to_pylist()) == ["2.png", "a.bmp"]
        assert [Path(drop["reason"].split()[0]).name for drop in drops] == ["b.png", "c.png"]
        assert {drop["keeper"] for drop in drops} == {rows[0]["image_id"]}


@pytest.mark.parametrize(("column", "value"), [("patient", "p7"), ("image_id", "0" * 16)])
def test_a_patient_or_image_in_two_splits_is_named(tmp_path, column, value):
    rows = [write(tmp_path, 1, "pool")[0], write(tmp_path, 2, "test")[0], write(tmp_path, 3, "dev")[0]]
    check(table(rows))
    for row in rows[:2]:
        row[column] = value
    with pytest.raises(ValueError, match=f"{column} {value} is in pool and test"):
        check(table(rows))


@pytest.mark.parametrize("column", ["split", "modality"])
def test_unknown_words_are_refused_with_the_row(tmp_path, column):
    rows = [write(tmp_path, 1)[0], write(tmp_path, 2)[0] | {column: "x-ray"}]
    with pytest.raises(ValueError, match=f"2.png: unknown {column} 'x-ray'"):
        check(table(rows))


def test_nothing_to_ingest_is_refused():
    with pytest.raises(ValueError, match="no images"):
        check(table([]))


@pytest.mark.engine
def test_ingest_on_ray_is_complete_sorted_and_repeats_byte_for_byte(tmp_path, ray_local):
    rows, _ = damaged(tmp_path)
    rows += [write(tmp_path, seed, ("pool", "dev", "test")[seed % 3])[0] for seed in range(10, 60)]
    rows.append(write(tmp_path, 10, "dev", "again.png")[0] | {"patient": rows[6]["patient"]})
    encoder = Encoder(batch_size=4)  # 14 blocks, enough for two actors
    counts = ingest(tmp_path / "a", table(rows), encoder=encoder)
    ingest(tmp_path / "b", table(rows[::-1]), encoder=encoder)
    assert counts == {"images": 53, "quarantined": 4, "pool": 19, "dev": 17, "test": 17}
    for name in ("images.parquet", "quarantine.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    images, quarantine = (read_table(tmp_path / "a" / f"{name}.parquet") for name in ("images", "quarantine"))
    ids = images["image_id"].to_pylist()
    assert ids == sorted(set(ids)) and images.column_names[:7] == IMAGE.names
    vectors = np.array(images["embedding"].to_pylist())
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(53), abs=1e-5)
    assert quarantine.schema == DROP
    assert sorted(quarantine["step"].to_pylist()) == ["decode", "decode", "digest", "duplicate"]
    assert set(ids) | set(quarantine["id"].to_pylist()) == {row["image_id"] for row in rows}


@pytest.mark.engine
def test_a_pool_without_one_readable_image_is_refused(tmp_path, ray_local):
    row, _ = write(tmp_path, 1)
    Path(row["uri"]).write_bytes(b"no image")
    with pytest.raises(ValueError, match="none of 1 images could be read"):
        ingest(tmp_path / "p", table([row]), encoder=Encoder())
