"""A release of MedQ-Bench in miniature: the six files in the layout of the real one, with every oddity we know of."""

import base64
import csv
import io
from pathlib import Path

import numpy as np
from PIL import Image

GOLDEN = "An axial CT slice.\nStreaks from metal.\tOverall, the quality of this image is usable."


def picture(seed: int, kind: str = "PNG", side: int = 16) -> bytes:
    """An image file of noise."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def write_tsv(path: Path, rows: list[dict[str, str]], mark: bool = False) -> None:
    """Rows as pandas and Excel write them: what needs quotes has them; `mark` is Excel's byte order mark."""
    with open(path, "w", newline="", encoding="utf-8-sig" if mark else "utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)


def asked(index: str, question: str, options: str, answer: str, image: str, **more: str) -> dict[str, str]:
    """A row of a perception file; options as in 'Good|Usable|Reject'."""
    letters = dict(zip("ABCD", [*options.split("|"), "", "", ""], strict=False))
    return {"index": index, "question": question, **letters, "answer": answer, "image": image, **more}


def perception_test() -> list[dict[str, str]]:
    """13 rows, 4 of which cannot be used: 12, 13, 15 and 16."""
    clear, which = "Is the aorta clear?", "Which artifact dominates?"
    more = {"modality": "MRI", "difficulty": "7", "Körperteil": "Knie"}
    png, jpeg, other = (encoded(picture(0)), encoded(picture(1, "JPEG")), encoded(picture(2)))
    return [
        asked("5", clear, "Yes|No", "B", png, **more),
        asked("6", which, "Motion|Undersampling|Metal|Noise", "0", "5", **more),  # its image stands above
        asked("7", "How is the overall quality?", "Good|Usable|Reject", " c ", "9", **more),  # and its below
        asked("8", 'A "hard"\tcase,\nüber 2 Zeilen: 漢字?', "a, b|c\td|'e'|f", "3", jpeg, modality="Computed Tomography"),
        asked("9", which, "Blur||Bubbles", "C", other, modality="colour fundus photography"),
        asked("10", which, "Blur|Noise|Ring|None", "d", png, modality="Ultrasound"),  # pandas reads no 'None'
        asked("11", which, "Blur|Noise", "1.0", f"['{jpeg}', '{png}']", modality=""),
        asked("12", clear, "Yes|No", "A", "nan"),
        asked("13", clear, "Yes|No", "A", encoded(picture(3)[:60])),
        asked("14", clear, "Yes|No", "", "6"),  # the image of 6, which is that of 5
        asked("15", clear, "Yes|No", "A", "13"),
        asked("16", clear, "Yes|No", "A", "16"),
        asked("11", "How noisy is it?", "Very|Not", "b", jpeg, type="How"),
    ]


def write_release(folder: Path) -> None:
    """The six files, and the image files that the dev split's point to."""
    png, jpeg = encoded(picture(4)), encoded(picture(5, "JPEG"))
    (folder / "pictures").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b ü.png", "c.png")):
        (folder / "pictures" / name).write_bytes(picture(6 + number))
    write_tsv(folder / "medqbench_QA_test.tsv", perception_test())
    write_tsv(
        folder / "medqbench_description_test.tsv",
        [
            {"index": "0", "description": GOLDEN, "image": png, "modality": "ct", "level": "Mild"},
            {"index": "1", "description": "Sharp. Good.", "image": "0", "modality": "CT", "level": "No"},
            {"index": "2", "description": "", "image": jpeg, "modality": "CT", "level": "severe"},
        ],
    )
    write_tsv(
        folder / "medqbench_paired_description_test.tsv",
        [
            {"index": "0", "image_a": png, "image_b": jpeg, "description": GOLDEN, "fine": "1"},
            {"index": "1", "image_a": jpeg, "image_b": png, "description": "The first is better.", "fine": "0"},
            {"index": "2", "image_a": jpeg, "image_b": "", "description": "One is missing.", "fine": "0"},
        ],
        mark=True,
    )
    write_tsv(
        folder / "medqbench_QA_dev.tsv",
        [
            {"index": "a1", "question": "Is it sharp?", "A": "Yes", "B": "No", "answer": "1", "image": png},
            {"index": "a2", "question": "Is it dark?", "A": "Yes", "B": "No", "answer": "0", "image": "a1"},
        ],
        mark=True,
    )
    write_tsv(
        folder / "medqbench_description_dev.tsv",
        [
            {"index": "0", "question": "Describe this.", "description": GOLDEN, "image_path": "pictures/a.png"},
            {"index": "1", "question": "", "description": GOLDEN, "image_path": "['pictures/b ü.png']"},
            {"index": "2", "question": "And this?", "description": GOLDEN, "image_path": "pictures/lost.png"},
        ],
    )
    paths = "['pictures/a.png', 'pictures/c.png']"
    write_tsv(
        folder / "medqbench_paired_description_dev.tsv",
        [{"index": "0", "question": "Which is better?", "description": GOLDEN, "image_path": paths}],
    )
