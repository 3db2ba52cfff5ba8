"""MedQ-Bench and MedQ-Deg as their authors release them: TSV files -> schema.BENCH_QUESTION.

The rules are those of VLMEvalKit's medqbench_*.py, medq_deg_bench.py and image_base.py at e8e78f05. What differs:
- A row that cannot be used is dropped and told. There, a row without an image is left out and a broken image or
  reference fails the whole file; a cell without a question is asked as 'nan'.
- Cells are text. pandas, which reads them there, turns a column of whole numbers with a hole into floats: an answer 1
  is then '1.0', which is no letter. Here it is what the file has, 1, which is B.
- Two rows with one index keep their own images. There, both get the second's.
- A relative image_path may also begin at the file's own folder. There, it begins at the working directory or at
  VLMEvalKit's image folder, never at the downloaded release.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from medq_ray.evaluate.published import COUNTS, KIND_COUNTS
from medq_ray.evaluate.tsv import MISSING, Album, Entry, given, header_of, read_entries, share_images
from medq_ray.images import MODALITY_WORDS, Refused
from medq_ray.pool.sources.gmai_mmbench import modality_of_question
from medq_ray.schema import BENCH_QUESTION, DROP

FILES = {
    "MedQ-Bench": {
        "test": {
            "perception": "medqbench_QA_test.tsv",
            "description": "medqbench_description_test.tsv",
            "comparison": "medqbench_paired_description_test.tsv",
        },
        "dev": {
            "perception": "medqbench_QA_dev.tsv",
            "description": "medqbench_description_dev.tsv",
            "comparison": "medqbench_paired_description_dev.tsv",
        },
        "all": {"perception": "medqbench_QA.tsv", "description": "medqbench_description.tsv"},
    },
    "MedQ-Deg": {
        split: {"perception": f"MedQ-Robust-{split}.tsv"}
        for split in ("simulate-test", "simulate-dev", "good-test", "good-dev")
    },
}
"""Benchmark -> split -> task -> file. 'all' is the pre-release, which was not split. Splits have different names."""
LETTERS = {"MedQ-Bench": "ABCD", "MedQ-Deg": "ABCDE"}
"""The columns of options. Every question has as many, '' where there is none."""
ALIASES = {"MedQ-Bench": {}, "MedQ-Deg": {"degradation": "degradation_type", "severity": "degradation_severity"}}
"""Our name of a column -> the release's."""
COLUMNS = {
    "perception": ("index", "question", "answer", "type", "image", "image_path"),
    "description": ("index", "question", "description", "image", "image_path"),
    "comparison": ("index", "question", "description", "image_a", "image_b", "image", "image_path"),
}
"""Task -> columns that we read, beside options, modality and LABELS."""
NEEDED = {
    "perception": ("index", "question", "A", "B", "answer"),
    "description": ("index", "description"),
    "comparison": ("index", "description"),
}
LABELS = ("degradation", "severity", "scope")
"""Columns that become capabilities, beside modality. Whether MedQ-Bench has such columns is not known."""
LABEL_WORDS = {"no": "none", "modality-specific": "specific"}
"""MedQ-Bench's words -> ours."""
KIND_WORDS = {"yesno": "yes_no", "yesorno": "yes_no", "what": "what", "how": "how"}
"""What a column `type` may say, letters only -> kind."""


@dataclass(frozen=True)
class Release:
    """What one split of a benchmark asks."""

    name: str
    """MedQ-Bench or MedQ-Deg."""
    split: str
    tables: dict[str, pa.Table]
    """Task -> schema.BENCH_QUESTION in the order of the file; a task without a file is not there."""
    dropped: pa.Table
    """schema.DROP: the rows that are no questions, and why."""
    notes: list[str]
    """What to know before believing a score, one line each."""


class Tally:
    """Which rows of a file gave cause for which note."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.rows: dict[str, list[str]] = defaultdict(list)

    def add(self, what: str, row: str) -> None:
        self.rows[what].append(row)

    def notes(self) -> list[str]:
        return [
            f"{self.file}: {what}: {len(rows):,} row{'s' if len(rows) > 1 else ''}, the first is {rows[0]}"
            for what, rows in self.rows.items()
        ]


def read_release(folder: Path, split: str, images: Path, columns: Mapping[str, str] = {}) -> Release:
    """The questions of one split. Their images are written to the folder `images`, where they may be already.

    folder: where the TSV files are; split: of FILES; columns: our name of a column -> its name in the release, for
    COLUMNS, options, modality and LABELS, as in {'severity': 'level'}. Raises ValueError, one line that says what to
    do, when none of the split's files is there, one lacks a column or has no row of use, or `columns` has a name that
    nobody knows.
    """
    name, paths = files_of(Path(folder), split)
    headers = {task: header_of(path) for task, path in paths.items()}
    check_map(columns, name, headers)
    places = {task: places_of(path, headers[task], name, task, columns) for task, path in paths.items()}
    album, tables, dropped, notes = Album(Path(images)), {}, [], []
    for task, file in FILES[name][split].items():
        if task not in paths:
            notes.append(f"{file}: not in {folder}, so there is no {task} task")
            continue
        tally = Tally(file)
        entries = list(read_entries(paths[task], places[task], album))
        share_images(entries, (2,) if task == "comparison" else (1, 2))
        tables[task] = questions_of(entries, name, task, tally)
        dropped += drops_of(entries, task, tally)
        notes += tally.notes() + unexpected_counts(file, split, task, tables[task])
        if tables[task].num_rows == 0:
            why = "; ".join(note.removeprefix(f"{file}: ") for note in tally.notes())
            raise ValueError(f"{paths[task]}: none of its {len(entries)} rows can be used; {why or 'fetch it again'}")
    return Release(name, split, tables, pa.Table.from_pylist(dropped, schema=DROP), notes)


def files_of(folder: Path, split: str) -> tuple[str, dict[str, Path]]:
    """(benchmark, task -> file, of those that are there). Raises ValueError for an unknown split and for no file."""
    names = {other: name for name, splits in FILES.items() for other in splits}
    if split not in names:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(names)}")
    there = {
        other: {task: folder / file for task, file in FILES[name][other].items() if (folder / file).is_file()}
        for other, name in names.items()
    }
    if not there[split]:
        others = [other for other, paths in there.items() if paths]
        hint = f"it has files of the split {', '.join(others)}" if others else "name the folder that has the TSV files"
        raise ValueError(f"{folder}: none of {', '.join(FILES[names[split]][split].values())}; {hint}")
    return names[split], there[split]


def known(name: str, task: str) -> tuple[str, ...]:
    """The columns that we read of a task's file."""
    return (*COLUMNS[task], *(LETTERS[name] if task == "perception" else ""), "modality", *LABELS)


def check_map(columns: Mapping[str, str], name: str, headers: Mapping[str, list[str]]) -> None:
    """Raises ValueError for a name on either side of the map that nobody has."""
    ours = dict.fromkeys(column for task in headers for column in known(name, task))
    for own, other in columns.items():
        if own not in ours:
            raise ValueError(f"column map: {own!r} is none of our columns, which are {', '.join(ours)}")
        if not any(other in header for header in headers.values()):
            every = dict.fromkeys(column for header in headers.values() for column in header)
            raise ValueError(f"column map: no file has a column {other!r}; they have {shown(every)}")


def places_of(path: Path, header: list[str], name: str, task: str, columns: Mapping[str, str]) -> dict[str, int]:
    """Our name of a column -> its place in the file, under its mapped name before its own. Raises ValueError when one
    that we need is missing."""
    places = {}
    for column in known(name, task):
        candidates = (columns.get(column), ALIASES[name].get(column), column)
        if (found := next((candidate for candidate in candidates if candidate in header), None)) is not None:
            places[column] = header.index(found)
    images = [column for column in COLUMNS[task] if column.startswith("image")]
    missing = [column for column in NEEDED[task] if column not in places]
    if not any(column in places for column in images):
        missing.append(" or ".join(images))
    if missing:
        raise ValueError(
            f"{path}: no column {missing[0]}; it has {shown(header)}; say which one it is with --map OURS=THEIRS"
        )
    return places


def shown(names: Mapping[str, None] | list[str]) -> str:
    """Column names for one line of a message; of a file that is no table they can be anything."""
    text = ", ".join(map(repr, names)) or "none"
    return text if len(text) <= 300 else text[:297] + "..."


def questions_of(entries: list[Entry], name: str, task: str, tally: Tally) -> pa.Table:
    """schema.BENCH_QUESTION of the rows without a problem; one found here is written into its entry."""
    rows: dict[str, dict] = {}
    for entry in entries:
        if entry.problem:
            continue
        try:
            row = question_of(entry, name, task, tally)
        except Refused as error:
            entry.problem = str(error)
            continue
        first, copies = row["question_id"], 1
        while row["question_id"] in rows:
            copies += 1
            row["question_id"] = f"{first}+{copies}"
        if copies > 1:
            tally.add("an index that an earlier row has; its question has a suffix", str(entry))
        rows[row["question_id"]] = row
    return pa.Table.from_pylist(list(rows.values()), schema=BENCH_QUESTION)


def question_of(entry: Entry, name: str, task: str, tally: Tally) -> dict:
    """One row of schema.BENCH_QUESTION. Raises Refused when it asks nothing, or nothing that has an answer."""
    cells = {column: given(cell) for column, cell in entry.cells.items()}
    text, options, kind = cells.get("question", ""), [], task
    if task == "perception":
        if not text:
            raise Refused("question: none")
        options = [cells.get(letter, "").strip() for letter in LETTERS[name]]
        answer = convert_answer(cells["answer"]) if name == "MedQ-Bench" else cells["answer"].strip().upper()
        kind = kind_of(cells.get("type", ""), text, options)
        for what in oddities(entry.cells, LETTERS[name], options, answer):
            tally.add(what, str(entry))
    elif not (answer := cells["description"]):
        raise Refused("description: no reference")
    if any("\ufffd" in cell for cell in cells.values()):
        tally.add("bytes that are no UTF-8, replaced; the official code refuses the file", str(entry))
    labels = {label: cells.get(label, "").strip().lower() for label in LABELS}
    labels = {label: LABEL_WORDS.get(value, value) for label, value in labels.items()}
    labels |= {"kind": kind, "modality": modality_of(cells.get("modality", ""))}
    (uri, image_id), *second = entry.pictures
    return {
        "question_id": f"{task}-{entry.index}",
        "image_id": image_id,
        "uri": uri,
        "kind": kind,
        "scope": labels["scope"],
        "modality": labels["modality"],
        "text": text,
        "options": options,
        "answer": answer,
        "capabilities": sorted(f"{axis}:{value}" for axis, value in labels.items() if value),
        "task": task,
        "second_uri": second[0][0] if second else "",
        "extra": json.dumps(entry.extra, ensure_ascii=False, sort_keys=True),
    }


def convert_answer(value: str) -> str:
    """The right letter as MedQ-Bench's loader has it: A to D in any case, or 0 to 3 as Python's int reads it, counted
    from zero. Anything else stays as it is, stripped: '1.0', '4', 'E' and 'Yes' are answers that no letter equals."""
    text = value.strip()
    if text.upper() in ("A", "B", "C", "D"):
        return text.upper()
    try:
        number = int(text)
    except ValueError:
        return text
    return "ABCD"[number] if 0 <= number <= 3 else text


def kind_of(said: str, text: str, options: list[str]) -> str:
    """yes_no, what or how: as a column `type` says, else by options and the stem (our rule; no official one is known;
    that it gives 558, 258 and 489 on the test split is checked when that is read)."""
    if kind := KIND_WORDS.get(letters_of(said)):
        return kind
    if {option.lower() for option in options if option} in ({"yes"}, {"no"}, {"yes", "no"}):
        return "yes_no"
    return "how" if re.match(r"how\b", text.strip(), re.IGNORECASE) else "what"


def letters_of(text: str) -> str:
    return re.sub("[^a-z]", "", text.lower())


def modality_of(cell: str) -> str:
    """One of schema.MODALITIES where a word of the cell says so, else the cell in lower case."""
    word = cell.strip().lower()
    return MODALITY_WORDS.get(word) or modality_of_question(cell) or word


def oddities(cells: Mapping[str, str], letters: str, options: list[str], answer: str) -> list[str]:
    """What a note should say of a perception row."""
    found = [
        f"an option {cells[letter]!r} is left out, for the official loader finds nothing there"
        for letter in letters
        if cells.get(letter) and cells[letter] in MISSING
    ]
    if not answer:
        found.append("no answer, so that no letter is right")
    elif answer not in [letter for letter, option in zip(letters, options, strict=True) if option]:
        found.append("an answer that is not the letter of an option, so that no offered letter is right")
    said = cells.get("type", "")
    if given(said) and letters_of(said) not in KIND_WORDS:
        found.append(f"a type {said[:40]!r} that we do not know; options and stem decide")
    return found


def drops_of(entries: list[Entry], task: str, tally: Tally) -> list[dict]:
    """schema.DROP of the rows with a problem, each of which also goes into the notes."""
    rows = []
    for entry in entries:
        if entry.problem:
            step, _, reason = entry.problem.partition(": ")
            tally.add(f"dropped, {step}", f"{entry}: {reason}")
            reason = f"row {entry.row}: {reason}"
            rows.append({"id": f"{task}-{entry.index}", "step": step, "reason": reason, "keeper": ""})
    return rows


def unexpected_counts(file: str, split: str, task: str, table: pa.Table) -> list[str]:
    """A note where a split has not as many questions as are known of it, or not as many of a type."""
    count = COUNTS.get(split, {}).get(task)
    if count is None:
        return []
    own, there = f"{table.num_rows:,} questions", f"{count:,}"
    if (split, task) == ("test", "perception"):
        kinds = Counter(table["kind"].to_pylist())
        own += f" ({', '.join(f'{kinds[kind]} {kind}' for kind in KIND_COUNTS)})"
        there += f" ({', '.join(f'{number} {kind}' for kind, number in KIND_COUNTS.items())})"
        agrees = table.num_rows == count and kinds == KIND_COUNTS
    else:
        agrees = table.num_rows == count
    return [] if agrees else [f"{file}: {own}, where the {split} split is known to have {there}"]
