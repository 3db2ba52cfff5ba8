"""Table 3 in words: the same cells for the terminal and for the console's page."""

HEADS = ("", "verdicts", "left", "reviewed", "accept", "edit", "reject", "min each", "min all", "changed", "agree",
         "kappa", "besides")  # fmt: skip
LEGEND = (
    "verdicts: that hold; reviewed: share of all annotations; accept, edit, reject: % with 95 % intervals; min each: "
    "active minutes a verdict; min all: also of what was skipped, undone or read twice; changed: share of an edited "
    "description's words; agree: of blind double reads, % (pairs); kappa: theirs, weighted for grades."
)
NONE = "–"


def table_rows(found: dict) -> list[tuple[str, list[list[str]]]]:
    """(title, rows of HEADS' cells) of the groups of `stats.overview`; those without rows are left out."""
    groups = [
        ("All", [_cells("total", found["total"])]),
        ("By iteration", [_cells(f"iteration {row['iteration']}", row) for row in found["iterations"]]),
        ("By reviewer", [_cells(_person(row), row) for row in found["reviewers"]]),
    ]
    return [(title, rows) for title, rows in groups if rows]


def table_text(found: dict) -> str:
    """The groups under one head, columns aligned; a column in which nothing stands is left out."""
    groups = table_rows(found)
    lines = [list(HEADS), *(row for _, rows in groups for row in rows)]
    used = [i for i in range(len(HEADS)) if i == 0 or any(line[i] not in ("", NONE) for line in lines[1:])]
    widths = {i: max(len(line[i]) for line in lines) for i in used}

    def line(cells: list[str]) -> str:
        return "  ".join(cells[i].rjust(widths[i]) if i else cells[i].ljust(widths[i]) for i in used).rstrip()

    parts = [line(lines[0])]
    for title, rows in groups:
        parts += ["", title, *(line(row) for row in rows)]
    return "\n".join(parts)


def _person(row: dict) -> str:
    marks = [row["role"]] if row["role"] != "reviewer" else []
    marks += ["simulated"] * row["simulated"] + ["dismissed"] * (not row["active"])
    return f"{row['name']} ({', '.join(marks)})" if marks else row["name"]


def _cells(name: str, row: dict) -> list[str]:
    reads, count = row["double_reads"], sum(row["verdicts"].values())
    kappas = [f"{kind.replace('_', '/')} {found['kappa']:.2f}" for kind, found in reads["kappa"].items()
              if found["kappa"] is not None]  # fmt: skip
    besides = [f"{row[what]} {what}" for what in ("skipped", "flagged", "undone", "late") if row.get(what)]
    return [
        name,
        f"{count:,}",
        f"{row['items'] - row['done']:,}" if "items" in row else "",
        _percent(row["review_rate"]),
        *(_share(row["rates"][action], row["ci95"][action]) for action in ("accept", "edit", "reject")),
        NONE if row["average_minutes"] is None else f"{row['average_minutes']:.2f}",
        f"{row['minutes']:.1f}",
        _percent(row["edit_distance"]),
        NONE if reads["agree"] is None else f"{_percent(reads['agree'])} ({reads['pairs']})",
        ", ".join(kappas) or NONE,
        ", ".join(besides),
    ]


def _percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.0f} %"


def _share(share: float | None, ends: list[float]) -> str:
    return NONE if share is None else f"{100 * share:.0f} ({100 * ends[0]:.0f}–{100 * ends[1]:.0f})"
