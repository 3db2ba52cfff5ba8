"""Answers on disk: what a model has given is never asked for again."""

import hashlib
import json
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from medq_ray.model.chat import Choice, Endpoint, Sampling

PLACE = 48
"""Bits of a place in a file: 281 TB."""


def request_key(endpoint: Endpoint, images: Sequence[str], prompt: str, sampling: Sampling) -> str:
    """What makes two requests the same: 32 hex digits of sha256 over model, checkpoint, image digests, prompt and
    sampling. The address is not part of it: the same checkpoint on another port is the same model."""
    asked = asdict(sampling)
    if not sampling.form:  # as it was before there were forms: answers of then are known
        del asked["form"]
    content = [endpoint.model, endpoint.identity, list(images), prompt, asked]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


class Cache:
    """A folder of append-only JSON lines, one file for each writing process, so that writers never share a file.

    Each line is handed to the operating system before `put` returns: a `kill -9` loses nothing that was answered. Only
    where each answer lies is held in memory, 160 bytes a request.
    """

    def __init__(self, folder: Path):
        """Look through every file of the folder. A last line that a kill tore off is ignored; raises ValueError naming
        the file when another line is damaged."""
        self.folder = folder
        self._paths = sorted(folder.glob("*.jsonl"))
        self._places: dict[str, int] = {}
        """Key -> place in its file, and above bit PLACE the number of the file."""
        self._file = None
        for number, path in enumerate(self._paths):
            self._index(number, path)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> list[Choice] | None:
        if key not in self._places:
            return None
        number, offset = divmod(self._places[key], 1 << PLACE)
        with open(self._paths[number], "rb") as file:
            file.seek(offset)
            return _read(file.readline(), self._paths[number])[1]

    def put(self, key: str, choices: Sequence[Choice]) -> None:
        """Keep the choices of one request."""
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._paths.append(self.folder / f"{uuid.uuid4().hex}.jsonl")
            self._file = open(self._paths[-1], "ab")
        offset = self._file.tell()
        self._file.write(json.dumps([key, [[*vars(choice).values()] for choice in choices]]).encode() + b"\n")
        self._file.flush()
        self._places[key] = ((len(self._paths) - 1) << PLACE) + offset

    def _index(self, number: int, path: Path) -> None:
        offset = number << PLACE
        with open(path, "rb") as file:
            for count, line in enumerate(file, 1):
                if line.endswith(b"\n"):  # else torn off
                    self._places[_read(line, f"{path}:{count}")[0]] = offset
                offset += len(line)


def _read(line: bytes, where: object) -> tuple[str, list[Choice]]:
    try:
        key, choices = json.loads(line)
        return key, [Choice(*choice) for choice in choices]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: damaged; delete the file, its questions are asked anew") from error
