"""The published results on MedQ-Bench's test split, as data with their sources.

Perception is in % right; judged scores are means over answers, 0 to 2 each, and their sum. The MedQ-Engine paper calls
its benchmark MedQbench+, but its scores are multiples of the test split's counts: it is the same test split.
"""

from typing import NamedTuple

COUNTS = {"test": {"perception": 1305, "description": 221, "comparison": 133}, "dev": {"perception": 1295}}
"""Split -> task -> questions. Nobody prints those of a split: the published scores are whole multiples of 1/1305, 1/221
and 1/133 but for a few cells, and the README's 2,600 perception questions leave 1,295 to dev."""
KIND_COUNTS = {"yes_no": 558, "what": 258, "how": 489}
"""Perception questions of the test split by type, found in the same way."""
PAPER = "MedQ-Engine paper, Table 1"
README = "MedQ-Bench README"


class Row(NamedTuple):
    """One published row."""

    model: str
    source: str
    """Of perception and description; comparison scores are all from README."""
    perception: tuple[float, ...]
    """yes_no, what, how, all."""
    description: tuple[float, ...] | None = None
    """completeness, preciseness, consistency, quality accuracy as printed, and the printed sum."""
    comparison: tuple[float, ...] | None = None
    ranked: bool = True
    """False for guessing and for people, whose Overall is another average."""


ROWS = (
    Row("random guess", PAPER, (50.00, 28.48, 33.30, 37.94), ranked=False),
    Row("non-experts", PAPER, (67.50, 57.50, 57.50, 62.50), ranked=False),
    Row("human experts", PAPER, (88.50, 77.50, 77.50, 82.50), ranked=False),
    Row(
        "GPT-5", README, (82.26, 60.47, 58.28, 68.97), (1.195, 1.118, 1.837, 1.529, 5.679),
        (1.293, 1.556, 1.925, 1.564, 6.338),
    ),
    Row(
        "GPT-4o", PAPER, (78.48, 49.64, 57.32, 64.79), (1.009, 1.027, 1.878, 1.407, 5.321),
        (1.105, 1.414, 1.632, 1.562, 5.713),
    ),
    Row(
        "Grok-4", PAPER, (73.30, 48.84, 59.10, 63.14), (0.982, 0.846, 1.801, 1.389, 5.017),
        (1.150, 1.233, 1.820, 1.459, 5.662),
    ),
    Row("Qwen2.5-VL-72B", PAPER, (78.67, 42.25, 56.44, 63.14), (0.905, 0.860, 1.896, 1.321, 4.982)),
    Row(
        "Gemini-2.5-Pro", PAPER, (75.13, 55.02, 50.54, 61.88), (0.878, 0.891, 1.688, 1.561, 5.018),
        (1.053, 1.233, 1.774, 1.534, 5.594),
    ),
    Row("InternVL3-38B", PAPER, (69.71, 57.36, 52.97, 61.00), (0.964, 0.824, 1.860, 1.317, 4.965)),
    Row("Claude-4-Sonnet", PAPER, (71.51, 46.51, 54.60, 60.23), (0.742, 0.633, 1.778, 1.376, 4.529)),
    Row(
        "InternVL3-8B", PAPER, (72.04, 47.67, 52.97, 60.08), (0.928, 0.878, 1.858, 1.317, 4.983),
        (0.985, 1.278, 1.797, 1.474, 5.534),
    ),
    Row("Qwen2.5-VL-32B", PAPER, (67.38, 43.02, 58.69, 59.31), (1.077, 0.928, 1.977, 1.290, 5.272)),
    Row("Mistral-Medium-3", PAPER, (65.95, 48.84, 52.97, 57.70), (0.923, 0.729, 1.566, 1.339, 4.557)),
    Row("MedGemma-27B", PAPER, (67.03, 48.06, 50.72, 57.16), (0.742, 0.471, 1.579, 1.262, 4.054)),
    Row("Qwen2.5-VL-7B", PAPER, (57.89, 48.45, 54.40, 54.71), (0.715, 0.670, 1.855, 1.127, 4.367)),
    Row("Lingshu-32B", PAPER, (50.36, 50.39, 51.74, 50.88), (0.624, 0.697, 1.932, 1.059, 4.312)),
    Row("BiMediX2-8B", PAPER, (44.98, 27.52, 27.81, 35.10), (0.376, 0.394, 0.281, 0.670, 1.721)),
    Row("Qwen2.5-VL-7B + Engine 10k", PAPER, (86.56, 68.22, 62.78, 74.02), (0.950, 0.937, 1.839, 1.520, 5.246)),
    Row("InternVL3-8B + Engine 10k", PAPER, (89.61, 73.64, 67.48, 78.16), (1.054, 1.091, 1.846, 1.661, 5.652)),
)  # fmt: skip

CAVEATS = {
    "perception": (
        "Guessing and people: their All is not the average over questions of the test split, so they take no rank.",
        "GPT-4o and Gemini-2.5-Pro: type columns that do not average to All, which is printed 0.06 points lower.",
    ),
    "description": (
        "The paper says that both Engine models have the highest totals: it leaves out GPT-5 (5.679), and the 5.246 of "
        "Engine-Qwen is below Qwen2.5-VL-32B (5.272) and GPT-4o (5.321).",
        "InternVL3-8B: its four axes add up to 4.981, printed is 4.983.",
        "The judge behind the published scores is not stated; the README's command has gpt-4o.",
    ),
    "comparison": (
        "The README publishes the comparison task of the best five models only, the paper of none.",
    ),
}
"""Task -> what to know before reading its published rows."""
