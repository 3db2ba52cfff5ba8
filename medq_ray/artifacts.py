"""The run directory: steps that know their inputs, finished if and only if their manifest says so.

A step writes its files into its own folder and `MANIFEST.json` last. Its fingerprint covers the settings that decide
results, the fingerprints of what it read and the version of its code, never hardware. The same command therefore
resumes a killed run: finished steps are skipped, an unfinished one starts over (answers that models have already
given are in the response cache), and a finished one with another fingerprint raises and names what differs.
"""

import hashlib
import json
import os
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

MANIFEST = "MANIFEST.json"
SCRATCH = "scratch"
"""Folders of this name hold what a step needs only while it runs; they are no part of its result."""


def digest_of(data: Any) -> str:
    """16 hex digits of sha256 over canonical JSON."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:16]


def digest_file(path: Path) -> str:
    """16 hex digits of sha256 over a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def digest_folder(path: Path) -> str:
    """16 hex digits of sha256 over names and bytes of all files below a folder."""
    return digest_of({str(p.relative_to(path)): digest_file(p) for p in sorted(path.rglob("*")) if p.is_file()})


def write_json(path: Path, data: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a torn one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(data, indent=1, sort_keys=True, default=str) + "\n")
    os.replace(temporary, path)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def write_table(path: Path, rows: pa.Table | list[dict], schema: pa.Schema) -> pa.Table:
    """Write rows as Parquet under a fixed schema, replacing atomically. Equal rows give equal bytes."""
    table = rows.cast(schema) if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows, schema=schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    pq.write_table(table, temporary, compression="zstd")
    os.replace(temporary, path)
    return table


def read_table(path: Path) -> pa.Table:
    """Read a Parquet file. Raises ValueError naming it when it is missing or damaged."""
    try:
        return pq.read_table(path, partitioning=None)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{path}: no readable Parquet table ({error})") from error


@dataclass(frozen=True)
class Step:
    """A finished step: its folder and manifest."""

    path: Path
    manifest: dict

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]

    def counts(self) -> str:
        """The numbers in its manifest in one short line."""
        flat = {key: value for key, value in self.manifest["counts"].items() if isinstance(value, int | float | str)}
        return ", ".join(f"{key} {v:,}" if isinstance(v, int) else f"{key} {v}" for key, v in flat.items())

    def table(self, name: str) -> pa.Table:
        return read_table(self.path / f"{name}.parquet")

    def json(self, name: str) -> Any:
        return read_json(self.path / f"{name}.json")


@dataclass(frozen=True)
class Run:
    """A run directory."""

    root: Path

    def step(
        self,
        name: str,
        work: Callable[[Path], dict | None],
        *,
        settings: dict,
        inputs: dict[str, str],
        version: int = 1,
    ) -> Step:
        """Do a step, or return it if it is done.

        `work(folder)` writes the step's files and returns numbers for the manifest (row counts, tokens). `settings`
        and `inputs` (name -> fingerprint) decide the step's identity; raise `version` when the code's results change.
        Raises ValueError when the folder holds a finished step of another identity, naming the first difference.
        """
        folder = self.root / name
        identity = json.loads(json.dumps({"settings": settings, "inputs": inputs, "version": version}, default=str))
        done = self.finished(name)
        if done is not None:
            if done.manifest["identity"] != identity:
                raise ValueError(
                    f"{folder} was made with {difference(done.manifest['identity'], identity)}; "
                    f"use another --run-dir or the same settings"
                )
            shutil.rmtree(folder / SCRATCH, ignore_errors=True)  # of a process that was killed after its manifest
            return done
        folder.mkdir(parents=True, exist_ok=True)
        started = time.time()
        counts = work(folder) or {}
        files = {
            str(path.relative_to(folder)): digest_file(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != MANIFEST and SCRATCH not in path.parts
        }
        manifest = {
            "name": name,
            "fingerprint": digest_of([identity, files]),
            "identity": identity,
            "counts": counts,
            "files": files,
            "seconds": round(time.time() - started, 2),
            "peak_driver_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
        write_json(folder / MANIFEST, manifest)
        shutil.rmtree(folder / SCRATCH, ignore_errors=True)
        return Step(folder, manifest)

    def finished(self, name: str) -> Step | None:
        """The finished step, or None."""
        path = self.root / name / MANIFEST
        return Step(path.parent, read_json(path)) if path.exists() else None


def difference(old: Any, new: Any, path: str = "") -> str:
    """The first place where two nested dicts differ, as 'a.b=1, not 2'."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                return difference(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    return f"{path}={old!r}, not {new!r}"
