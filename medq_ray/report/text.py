"""Numbers and names as people read them, and the plain-text table that ends a run."""

import textwrap

from medq_ray.schema import KINDS

WIDTH = 110
KIND_NAMES = {"yes_no": "yes/no", "what": "what", "how": "how", "description": "description"}
MODALITY_NAMES = {"mri": "MRI", "ct": "CT"}
ORDER = ("selected", "targeted", "failure_driven", "random", "retrieved", "evaluate", "explore", "annotate", "review",
         "evolve")  # fmt: skip
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def words(name: str) -> str:
    """A field, step or degradation name in words: 'cold_start' -> 'cold start', 'mri' -> 'MRI'."""
    return MODALITY_NAMES.get(name) or KIND_NAMES.get(name) or name.replace("_", " ")


def capability_words(name: str) -> str:
    """'cell:mri/bias_field' -> 'MRI · bias field', 'kind:yes_no' -> 'yes/no question'."""
    axis, _, value = name.partition(":")
    text = " · ".join(words(part) for part in value.split("/"))
    if axis in ("cell", "degradation") and value.endswith("none"):
        return text.removesuffix("none") + "clean"
    if axis == "severity":
        return "no degradation" if value == "none" else f"{text} degradation"
    return {"kind": f"{text} questions", "scope": f"{text} degradations"}.get(axis, text)


def percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f}"


def interval(bounds: list[float]) -> str:
    return f"{100 * bounds[0]:.1f}–{100 * bounds[1]:.1f}"


def p_value(p: float) -> str:
    """'0.013', or '3 × 10⁻¹⁶' below one in a thousand."""
    if p >= 0.001:
        return f"{p:.3f}"
    mantissa, _, exponent = f"{p:.0e}".partition("e")
    return f"{mantissa}\u202f×\u202f10{str(int(exponent)).translate(SUPERSCRIPTS)}" if p > 0 else "0"


def kinds_of(summary: dict) -> list[str]:
    """Question kinds that were scored, in the vocabulary's order."""
    present = {kind for row in summary["iterations"] for split in ("dev", "test") for kind in row[split]["by_kind"]}
    return [kind for kind in KINDS if kind in present]


def counts_line(counts: dict[str, float]) -> str:
    """'oracle 12, expert 3' in the order of the work; nested and zero counts are left out."""
    known = sorted(counts, key=lambda key: (ORDER.index(key) if key in ORDER else len(ORDER), key))
    parts = [f"{words(key)} {counts[key]:,}" for key in known if isinstance(counts[key], int | float) and counts[key]]
    return ", ".join(parts) or "none"


def rejected(row: dict) -> bool:
    """Whether an iteration's checkpoint was not promoted (runs of before there were promotions have none)."""
    return bool(row.get("promotion")) and not row["promotion"]["promoted"]


def served(summary: dict) -> tuple[int, dict]:
    """The iteration whose checkpoint serves, and the comparison of base and it on test."""
    compared = summary["comparison"]
    return (
        summary.get("serving", summary["iterations"][-1])["t"],
        compared.get("base_to_serving", compared["base_to_last"]),
    )


def iteration_table(summary: dict) -> str:
    """The table of a run for the terminal, at most 110 columns.

    One accuracy row for each iteration and split (percent, 95 % interval in brackets), then what each iteration did:
    why its checkpoint was promoted or not, selection, routes, verdicts, drops, seconds. `summary` is summary.json;
    iterations without training rows are the last ones.
    """
    kinds = kinds_of(summary)
    heads = ["perception", *(words(kind) for kind in kinds)]
    lines = [
        "Accuracy in % with 95 % intervals (perception: yes/no, what and how together)",
        "",
        " t split     n" + "".join(f"{head:>19}" for head in heads),
    ]
    for row in summary["iterations"]:
        for split in ("dev", "test"):
            score = row[split]
            cells = [score, *(score["by_kind"].get(kind) for kind in kinds)]
            mark = f"{row['t']:>2}" if split == "dev" else "  "
            lines.append(f"{mark} {split:<4}{score['n']:>7}" + "".join(f"{cell_text(cell):>19}" for cell in cells))
    lines.append("")
    for row in summary["iterations"]:
        lines += details(row)
    if summary["stopped"] is None:  # still running
        return "\n".join(lines)
    t, compared = served(summary)
    low, high = (100 * bound for bound in compared["ci95"])
    result = (
        f"test perception, base to what serves: {100 * compared['difference']:+.1f} points [{low:+.1f}, {high:+.1f}], "
        f"McNemar p = {compared['p_mcnemar']:.2g}, n = {compared['n']}"
    )
    lines += [
        "",
        result if t else "no checkpoint was promoted: the base serves",
        f"serving: {summary['iterations'][t]['checkpoint']}",
        f"stopped: {words(summary['stopped'])}",
    ]
    return "\n".join(lines)


def metrics_table(model: str, split: str, metrics: dict) -> str:
    """One evaluation for the terminal; metrics: of `evaluate.scoring.accuracy`."""
    lines = [f"{model} on {split}: accuracy in % with 95 % intervals", ""]
    lines.append(f"  {'perception':<28}{cell_text(metrics):>19}{metrics['n']:>7}")
    for axis in ("kind", "modality", "severity", "scope"):
        lines.append("")
        for value, cell in metrics[f"by_{axis}"].items():
            lines.append(f"  {capability_words(f'{axis}:{value}'):<28}{cell_text(cell):>19}{cell['n']:>7}")
    unparsed, failed = percent(metrics["unparsed"]), percent(metrics["failed"])
    lines += ["", f"  runs without a readable letter {unparsed} %, without an answer {failed} %"]
    return "\n".join(lines)


def cell_text(cell: dict | None) -> str:
    """'52.4 [49.1, 55.6]', at most 17 characters."""
    if cell is None or cell["accuracy"] is None:
        return "–"
    value, low, high = (f"{100 * share:.1f}".replace("100.0", "100") for share in (cell["accuracy"], *cell["ci95"]))
    return f"{value} [{low}, {high}]"


def details(row: dict) -> list[str]:
    """What one iteration did, wrapped to WIDTH."""
    facts = {"checkpoint": row["checkpoint"]}
    if row.get("promotion"):
        facts["on dev"] = row["promotion"]["why"]
    if "selected" in row:
        facts |= {
            "selected": counts_line(row["selected"]),
            "routes": counts_line(row["routes"]),
            "verdicts": counts_line(row["verdicts"]),
            "dropped": counts_line(row["dropped"]),
            "trained on": f"{row['trained_on']:,} samples",
        }
    facts["seconds"] = counts_line({phase: round(seconds) for phase, seconds in row["seconds"].items()})
    lines = []
    for number, (name, value) in enumerate(facts.items()):
        mark = f"{row['t']:>2}" if number == 0 else "  "
        lines += textwrap.wrap(f"{mark}  {name:<11} {value}", WIDTH, subsequent_indent=" " * 16)
    return lines
