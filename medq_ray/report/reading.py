"""Reading a run directory: every table is optional, since a run may have been stopped after any phase."""

import base64
import io
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from medq_ray.artifacts import read_json, read_table
from medq_ray.images import read_image

THUMBNAIL = 112
"""Longest side of a thumbnail in pixels: the size of the embedded world's images, which thus stay unscaled."""


@dataclass(frozen=True)
class RunFiles:
    """A run directory, read."""

    root: Path

    def table(self, name: str) -> list[dict]:
        """Rows of one Parquet file below the run directory; none where there is no such file."""
        path = self.root / name
        return read_table(path).to_pylist() if path.exists() else []

    def columns(self, name: str) -> pa.Table | None:
        path = self.root / name
        return read_table(path) if path.exists() else None

    def json(self, name: str) -> Any:
        path = self.root / name
        return read_json(path) if path.exists() else None

    @cached_property
    def summary(self) -> dict:
        """summary.json. Raises ValueError where no iteration has finished."""
        if not (self.root / "summary.json").exists():
            raise ValueError(f"{self.root} holds no summary.json yet: no iteration has finished there")
        return read_json(self.root / "summary.json")

    @cached_property
    def truth(self) -> dict[str, dict]:
        """image id -> {modality, degradation, severity} where the world is synthetic, else nothing."""
        path = Path(self.summary["world"]) / "truth.parquet"
        if not path.exists():
            return {}
        rows = read_table(path).select(["image_id", "modality", "degradation", "severity"]).to_pylist()
        return {row.pop("image_id"): row for row in rows}

    @cached_property
    def pool(self) -> list[dict]:
        """image_id, uri, modality of the pool split; embeddings stay on disk."""
        path = self.root / "pool" / "images.parquet"
        if not path.exists():
            return []
        table = pq.read_table(path, columns=["image_id", "uri", "split", "modality"], partitioning=None)
        return table.filter(pc.equal(table["split"], "pool")).drop_columns(["split"]).to_pylist()

    @cached_property
    def uris(self) -> dict[str, str]:
        return {row["image_id"]: row["uri"] for row in self.pool}


@cache
def thumbnail(uri: str | None) -> str | None:
    """The image as a data URL of at most THUMBNAIL pixels a side (WebP, quality 90), None where it cannot be read."""
    try:
        image = Image.fromarray(read_image(uri or ""))
    except ValueError:
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=90, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
