"""The exploring phase: retrieve, select, ask."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medq_ray.artifacts import write_table
from medq_ray.config import Config
from medq_ray.console import say
from medq_ray.depth import beside
from medq_ray.explore.chosen import Chosen
from medq_ray.explore.pairs import partners
from medq_ray.explore.questions import questions as seed_rule
from medq_ray.explore.retrieve import Search, retrieve
from medq_ray.explore.sampling import Embedded, Evidence, Hits
from medq_ray.explore.strategies import Means, select
from medq_ray.explore.writing import commissions, written
from medq_ray.model.ask import Answer
from medq_ray.schema import DROP, HIT, QUESTION, SELECTION, SHARE

Fetch = Callable[[list[str], Path], dict[str, str]]
"""fetch(image ids, folder) -> image id -> path of the PNG that it wrote there, its depth beside it if there is one."""


def explore(
    folder: Path,
    *,
    config: Config,
    iteration: int,
    prototypes: pa.Table,
    rates: dict[str, dict],
    asked: pa.Table,
    failures: pa.Table,
    images: pa.Table,
    allowed: pa.Array,
    search: Search,
    embedded: Embedded,
    fetch: Fetch,
    ask_self: Answer,
    ask_oracle: Answer,
    taken: set[str],
) -> dict:
    """Phase 2 up to annotation (Sec. 2.3).

    prototypes: schema.PROTOTYPE, rates: eq. 1, asked: schema.QUESTION on dev that were answered, and failures:
    schema.FAILURE, of the evaluation of the checkpoint that serves; images: schema.POOL_IMAGE of all splits, of which
    those of split 'pool' with an id in `allowed` can be selected; search, embedded, fetch: over the pool; ask_self,
    ask_oracle: that checkpoint and the oracle; taken: image ids selected in earlier iterations.

    Writes retrieved, selection, shares, questions and dropped (.parquet), images that were nowhere yet as a file of
    their own (images/*.png), and returns counts. Raises ValueError when the pool has no images, or the oracle writes no
    question.
    """
    settings = config.explore
    pool = images.filter(pc.and_(pc.equal(images["split"], "pool"), pc.is_in(images["image_id"], allowed)))
    if pool.num_rows == 0:
        raise ValueError("the pool has no images of split 'pool' to explore")
    hits = write_table(folder / "retrieved.parquet", retrieve(prototypes, pool, search, settings.tau_sim), HIT)
    chosen = Chosen(images, pool["image_id"].combine_chunks(), taken, radius=config.evolve.phash_radius,
                    tolerance=config.evolve.quality_tolerance)  # fmt: skip
    means = Means(
        config=config,
        hits=Hits.of(hits, prototypes, chosen.images),
        rates=rates,
        evidence=Evidence.of(asked, failures),
        rng=np.random.default_rng(np.random.SeedSequence([config.seed, iteration])),
        embedded=embedded,
        fetch=remembered(lambda names: fetch(names, folder / "images")),
        ask_self=ask_self,
        taken=sorted(taken),
    )
    missing, shares = select(chosen, means)
    selection = chosen.table()
    tell(selection, settings.budget, missing)
    selection = at_hand(selection, means.fetch)
    kept = [Path(uri) for uri in selection["uri"].to_pylist()]
    for path in set((folder / "images").glob("*.png")).difference(kept, map(beside, kept)):
        path.unlink()  # looked at by a strategy, and not selected
    write_table(folder / "selection.parquet", selection, SELECTION)
    write_table(folder / "shares.parquet", shares, SHARE)
    pairs = partners(selection, embedded, config.seed) if "comparison" in settings.kinds else {}
    questions, dropped = put(selection, prototypes, pairs, config, ask_oracle)
    write_table(folder / "questions.parquet", questions, QUESTION)
    write_table(folder / "dropped.parquet", dropped, DROP)
    return {
        "hits": hits.num_rows,
        "retrieved": pc.count_distinct(hits["image_id"]).as_py(),
        "selected": selection.num_rows,
        "targeted": pc.sum(pc.not_equal(selection["strategy"], "random")).as_py() or 0,
        "questions": questions.num_rows,
        "dropped": dropped.num_rows,
    }


def remembered(fetch: Callable[[list[str]], dict[str, str]]) -> Callable[[list[str]], dict[str, str]]:
    """`fetch`, which is asked for every image once: a strategy may have looked at what is selected."""
    paths: dict[str, str] = {}

    def known(names: list[str]) -> dict[str, str]:
        new = [name for name in names if name not in paths]
        if new:
            paths.update(fetch(new))
        return {name: paths[name] for name in names}

    return known


def put(
    selection: pa.Table, prototypes: pa.Table, pairs: dict[str, dict], config: Config, ask_oracle: Answer
) -> tuple[pa.Table, pa.Table]:
    """(schema.QUESTION about selected images, schema.DROP), as `explore.questions` says."""
    settings = config.explore
    if settings.questions == "seed_rule":
        found = seed_rule(selection, prototypes, kinds=settings.kinds, seed=config.seed, partners=pairs)
        return found, DROP.empty_table()
    orders = commissions(selection, prototypes, kinds=settings.kinds, seed=config.seed, partners=pairs)
    found, dropped = written(orders, ask_oracle, attempts=settings.attempts, temperature=config.oracle.temperature,
                             seed=config.seed)  # fmt: skip
    if dropped.num_rows and not found.num_rows:
        reason, count = Counter(dropped["reason"].to_pylist()).most_common(1)[0]
        raise ValueError(f"the oracle wrote none of {len(orders)} questions by the rules; {count} of them: {reason}")
    if dropped.num_rows:
        say(f"  {dropped.num_rows} of {len(orders)} questions are dropped: the oracle never kept the rules")
    return found, dropped


def tell(selection: pa.Table, budget: int, missing: int) -> None:
    """Say where less was found than was wanted."""
    drawn = pc.sum(pc.equal(selection["strategy"], "random")).as_py() or 0
    say(f"  {selection.num_rows - drawn} images selected for a reason, {drawn} at random")
    if missing:
        say(f"  the pool has only {selection.num_rows} images left for a budget of {budget}")


def at_hand(selection: pa.Table, fetch: Callable[[list[str]], dict[str, str]]) -> pa.Table:
    """The selection with a picture file for every image: those that lie inside volumes, archives and tables are
    written as PNG, so that nobody after this has to know about sources."""
    rows = selection.to_pylist()
    paths = fetch([row["image_id"] for row in rows if not row["uri"]])
    return pa.Table.from_pylist([row | {"uri": row["uri"] or paths[row["image_id"]]} for row in rows], schema=SELECTION)
