"""What thresholds buy: the error of labels against the share that experts see, from samples that experts have seen.

At t = 0 experts see everything, and the model annotates beside (`annotate.annotate`). Later they see what the routing
sends them and the audits; an audited sample stands for all of its route, one over the audits' share of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medq_ray.artifacts import read_json, read_table
from medq_ray.intervals import wilson
from medq_ray.labels import readable, says_same

SHARES = np.round(np.arange(0, 1.01, 0.02), 2)
"""Experts' shares of a curve."""
AGREEMENTS = (0.2, 0.5, 0.7, 0.95)
"""tau_ann that are tried: letters agree or not, and of what a description's R adds up few sums are apart; 0.95 is all
but the words."""
COLUMNS = {"cold_start": 10, "oracle": 6, "self": 6, "expert": 6, "dropped": 7}
"""Routes in the order they are shown, and how wide."""


@dataclass(frozen=True)
class Reviewed:
    """Samples whose right label an expert gave, as arrays. Rejected ones are left out: nobody knows what is right."""

    entropy: np.ndarray
    """float (n,); NaN where unknown."""
    delta: np.ndarray
    """float (n,), R(self, oracle)."""
    forced: np.ndarray
    """bool (n,): nothing but an expert's label will do."""
    oracle_wrong: np.ndarray
    """bool (n,)"""
    self_wrong: np.ndarray
    """bool (n,)"""
    weight: np.ndarray
    """float (n,): annotations that each stands for."""

    def __len__(self) -> int:
        return len(self.entropy)


def reviewed(run_dir: Path, iteration: int) -> Reviewed:
    """The reviewed samples of one iteration. Raises ValueError when it has none yet."""
    folder = Path(run_dir) / f"iter-{iteration:02d}"
    if not (folder / "review" / "verdicts.parquet").exists():
        raise ValueError(f"{folder} has no review yet; thresholds are calibrated by reviewed samples")
    asked = {row["question_id"]: row for row in read_table(folder / "explore" / "questions.parquet").to_pylist()}
    verdicts = {row["question_id"]: row for row in read_table(folder / "review" / "verdicts.parquet").to_pylist()}
    rows = read_table(folder / "annotate" / "annotations.parquet").to_pylist()
    seen = [row for row in rows if verdicts.get(row["question_id"], {"action": "reject"})["action"] != "reject"]
    if not seen:
        raise ValueError(f"{folder}: no label was accepted or edited, so nothing says which were right")
    audits = {
        route: sum(row["route"] == route for row in rows) / max(1, sum(row["route"] == route for row in seen))
        for route in ("oracle", "self")
    }
    for route in ("oracle", "self"):
        unseen = sum(row["route"] == route for row in rows)
        if unseen and not any(row["route"] == route for row in seen):
            hint = "calibrate on another iteration, or raise annotate.audit_share"
            raise ValueError(f"{folder}: experts saw none of the {unseen} annotations of route {route}; {hint}")
    found = []
    for row in seen:
        kind, options = asked[row["question_id"]]["kind"], len(asked[row["question_id"]]["options"])
        right = verdicts[row["question_id"]]["after"]
        usable = [readable(kind, row[name], options) is not None for name in ("oracle_text", "self_text")]
        same = [says_same(kind, row[name], right, options) for name in ("oracle_text", "self_text")]
        if None in same:  # free descriptions that nobody can compare teach nothing about thresholds
            continue
        entropy = np.nan if row["entropy"] is None else row["entropy"]
        comparable = usable[1] and row["agreement"] is not None
        delta = row["agreement"] if comparable else -1.0  # nothing of the model's to adopt: never consistent
        forced, wrong = not usable[0] or not np.isfinite(entropy), [not right for right in same]
        found.append((entropy, delta, forced, *wrong, audits.get(row["route"], 1.0)))
    if not found:
        raise ValueError(f"{folder}: nobody can tell of any label whether it was right: all are free descriptions")
    columns = [np.array(column) for column in zip(*found, strict=True)]
    return Reviewed(*columns)


def outcome(samples: Reviewed, tau_entropy: float, tau_agreement: float) -> dict:
    """{tau_entropy, tau_agreement, expert_share, label_error, ci95, forced} with these thresholds, without dead band
    and audits; experts make no error; forced: samples that must go to them."""
    confident = np.nan_to_num(samples.entropy, nan=np.inf) < tau_entropy
    agrees = samples.delta >= tau_agreement
    expert = samples.forced | (confident & ~agrees)
    wrong = np.where(confident, samples.self_wrong, samples.oracle_wrong) & ~expert
    total = samples.weight.sum()
    error = float((samples.weight * wrong).sum() / total)
    effective = int(total**2 / (samples.weight**2).sum())  # Kish: weights make samples worth fewer
    return {"tau_entropy": float(tau_entropy), "tau_agreement": float(tau_agreement),
            "expert_share": float((samples.weight * expert).sum() / total), "label_error": error,
            "forced": int(samples.forced.sum()),
            "ci95": list(wilson(error, effective))}  # fmt: skip


def curve(samples: Reviewed) -> list[dict]:
    """The `outcome` with the least label error for each of SHARES, of experts' shares that do not exceed it."""
    taus = np.unique(np.append(samples.entropy[np.isfinite(samples.entropy)], [0.0]))
    taus = np.append(taus[:: max(1, len(taus) // 200)], np.nextafter(taus[-1], np.inf))
    tried = [outcome(samples, tau, agreed) for agreed in AGREEMENTS for tau in taus]
    points = []
    for share in SHARES:
        within = [point for point in tried if point["expert_share"] <= share + 1e-9]
        if within:
            best = min(within, key=lambda point: (point["label_error"], point["expert_share"], point["tau_entropy"]))
            points.append({"share": float(share)} | best)
    return points


def propose(points: list[dict], *, experts: float | None, error: float | None) -> dict:
    """The point of a curve that meets a target: the least error within an experts' share, or the least share within an
    error. Raises ValueError when none does."""
    if error is not None:
        fits = [point for point in points if point["label_error"] <= error]
        if not fits:
            least = min(point["label_error"] for point in points)
            raise ValueError(f"no thresholds have a label error of {error:g}; the least is {least:.3f}")
        return min(fits, key=lambda point: (point["expert_share"], point["label_error"]))
    fits = [point for point in points if point["expert_share"] <= experts]
    if not fits:
        least = min(point["expert_share"] for point in points)
        why = f"{int(points[0]['forced'])} of the reviewed annotations have no usable label, or no known entropy"
        raise ValueError(f"experts see {100 * least:.0f} % at least: {why}")
    return min(fits, key=lambda point: (point["label_error"], point["expert_share"]))


def routes_of(run_dir: Path) -> list[dict]:
    """routes.json of each iteration that has annotated. Raises ValueError when none has."""
    paths = sorted(Path(run_dir).glob("iter-*/annotate/routes.json"))
    if not paths:
        raise ValueError(f"{run_dir}: no iteration has annotated there")
    return [read_json(path) for path in paths]


def reviewed_in(run_dir: Path, iterations: Sequence[int]) -> tuple[int, Reviewed]:
    """The last of the iterations whose review can be calibrated by, and its samples: after the cold start experts may
    have seen too few for it. Raises ValueError as `reviewed` does for the last, where none can."""
    errors = []
    for iteration in reversed(iterations):
        try:
            return iteration, reviewed(run_dir, iteration)
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def routes_table(routes: list[dict]) -> str:
    """One line an iteration: routes, the experts' share, thresholds, and how many routes flipped."""
    lines = ["t  cold_start  oracle    self  expert  dropped  audits  experts see   tau_H  tau_ann  flipped"]
    for row in routes:
        counts = "  ".join(f"{row['routes'][name]:{width},}" for name, width in COLUMNS.items())
        line = f"{row['iteration']}  {counts}  {row.get('audits', 0):6,}  {100 * row['expert_share']:9.1f} %"
        if "noise" in row:
            noise = row["noise"]
            line += f"  {row['tau_entropy']:6.4f}  {row['tau_agreement']:7.2f}  {noise['flips']} of {noise['samples']}"
        lines.append(line)
    return "\n".join(lines)


def table(points: list[dict], samples: Reviewed, chosen: dict) -> str:
    """A curve in columns, the chosen point marked."""
    oracle = float((samples.weight * samples.oracle_wrong).sum() / samples.weight.sum())
    lines = [f"{len(samples):,} reviewed samples; the oracle alone is wrong in {100 * oracle:.1f} %", "",
             "experts see   label error   95 % interval    tau_H   tau_ann"]  # fmt: skip
    shown = [point for i, point in enumerate(points) if i == 0 or point["tau_entropy"] != points[i - 1]["tau_entropy"]]
    for point in shown:
        values = (point["expert_share"], point["label_error"], *point["ci95"])
        share, error, low, high = (100 * value for value in values)
        mark = "  <- proposed" if point == chosen else ""
        lines.append(f"{share:9.1f} %   {error:9.1f} %   {low:5.1f} to {high:4.1f} %   {point['tau_entropy']:6.4f}   "
                     f"{point['tau_agreement']:7.1f}{mark}")  # fmt: skip
    return "\n".join(lines)
