"""Which checkpoint serves: the new one, unless the paired comparison on dev shows a loss against the one that does.

The paper does not say. Our choice: any fall of dev accuracy is a loss, also one that may be chance; a tie is none.

- The two errors do not cost the same. To keep the old checkpoint wrongly costs one fine-tuning: the labels stay, and
  the next one learns from them too. To serve a worse one wrongly costs those whose images it judges.
- A test that asks for proof of a loss lets small ones pass, and they add up: of 450 questions about 150 patients, of
  which one in eight changes, the 95 % interval reaches 4 points to either side, so that five losses of 3 points
  may pass one after another. Here the bar is the best score so far and never falls: nothing adds up, unless it looks
  like a gain each time.
- With 30 questions nearly no loss can be proven, and such a rule would promote whatever there is. Here few questions
  make the decision noisier in both directions, and the decision says so.

A capability that fell beyond chance while the whole rose does not stop a promotion (the demo's first checkpoint gains
25 points on specific degradations and loses five on everyday ones); it is named in the decision.
"""

from pathlib import Path

from medq_ray import config
from medq_ray.artifacts import Run, write_json
from medq_ray.console import say
from medq_ray.model.deploy import resolve_checkpoint

STEP = "promote"
MARK = "NOT_PROMOTED.txt"
"""Beside a checkpoint that was not promoted: why. No part of the step that made the checkpoint."""
NUMBERS = ("difference", "ci95", "p_mcnemar", "n", "gained", "lost", "unanswered")


def checkpoint_name(t: int) -> str:
    """The checkpoint after `t` fine-tunings, as a path below the run directory, or 'base'."""
    return "base" if t == 0 else f"iter-{t - 1:02d}/evolve/checkpoint"


def named(t: int) -> dict:
    return {"t": t, "checkpoint": checkpoint_name(t)}


def decide(found: dict, serving: int, t: int) -> dict:
    """Whether the checkpoint that iteration `t` evaluated replaces that of iteration `serving`.

    found: `evaluate.compare.compare` of the two on dev, the new one after the other: shares of right runs, perception
    questions only. Returns {promoted, checkpoint: the new one, against and serving: {t, checkpoint} of the one that
    served and of the one that does from now on, NUMBERS of found, moved: {up, down: capabilities that changed, by
    McNemar's test adjusted for all}, why: a sentence}.
    """
    promoted = found["difference"] >= 0
    ways = {name: row["moved"] for name, row in found["capabilities"].items()}
    moved = {way: [name for name, moved in ways.items() if moved == way] for way in ("up", "down")}
    return {
        "promoted": promoted,
        "checkpoint": checkpoint_name(t),
        "against": named(serving),
        "serving": named(t if promoted else serving),
        **{name: found[name] for name in NUMBERS},
        "moved": moved,
        "why": sentence(found, promoted, "the base" if serving == 0 else f"iteration {serving}", moved["down"]),
    }


def sentence(found: dict, promoted: bool, other: str, fell: list[str]) -> str:
    low, high = (100 * end for end in found["ci95"])
    said = (
        f"dev {100 * found['difference'] + 0.0:+.2f} points [{low:+.1f}, {high:+.1f}] against {other} ({found['n']:,} "
        f"questions, {found['gained']:,} answered better and {found['lost']:,} worse)"
    )
    said += ", which may be chance" if found["difference"] and low <= 0 <= high else ""
    said += f"; left out for want of an answer: {found['unanswered']:,}" if found["unanswered"] else ""
    said += f"; capabilities that fell by McNemar's test: {', '.join(fell)}" if fell else ""
    return f"promoted: {said}" if promoted else f"not promoted: {said}; {other} goes on serving"


def promote(folder: Path, root: Path, found: dict, serving: int, t: int) -> dict:
    """The work of a promote step of the run directory `root`: writes decision.json (`decide`) into `folder` and MARK
    beside a checkpoint that is not promoted; counts for the manifest."""
    decision = decide(found, serving, t)
    write_json(folder / "decision.json", decision)
    if not decision["promoted"]:
        (root / decision["checkpoint"]).with_name(MARK).write_text(decision["why"] + "\n")
    return {"decision": "promoted" if decision["promoted"] else "not promoted"}


def serving_at(run: Run, t: int) -> int:
    """The iteration whose evaluation and checkpoint iteration `t` explored and annotated by: itself or, where its
    checkpoint was not promoted, the one whose checkpoint went on serving."""
    decided = run.finished(f"iter-{t:02d}/{STEP}")
    return t if decided is None else decided.json("decision")["serving"]["t"]


def serving_now(run: Run) -> int:
    """The iteration whose checkpoint serves by the last decision: summary.json says the same, but only when the
    iteration has ended, which may take people weeks."""
    t = 0
    while run.finished(f"iter-{t + 1:02d}/{STEP}") is not None:
        t += 1
    return serving_at(run, t)


def checkpoint_to_serve(name: str) -> Path:
    """The folder of a checkpoint: 'embedded', a Hugging Face folder or, of a run directory, the one that serves there.

    Says which one that is, and when a folder is one that was not promoted. Raises ValueError when there is no
    checkpoint.
    """
    folder = Path(name)
    if (folder / "run.yaml").is_file():
        t = serving_now(Run(folder))
        name = str(folder / checkpoint_name(t)) if t else config.load(folder / "run.yaml").engine.checkpoint
        say(f"{folder}: {checkpoint_name(t)} serves" if t else f"{folder}: no checkpoint is promoted, the base serves")
    chosen = resolve_checkpoint(name)
    if (mark := chosen.with_name(MARK)).exists():
        say(f"warning: {chosen} was {mark.read_text().strip()}")
    return chosen
