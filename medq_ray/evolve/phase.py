"""Annotations in, a better checkpoint out: curate, fine-tune, export (paper Sec. 2.4).

Everything under `folder/scratch` belongs to a fine-tuning that is still running: the same call after a kill goes on
from its last complete epoch. It is deleted with the end of the step (`artifacts.Run.step`).
"""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from medq_ray.artifacts import write_table
from medq_ray.config import Config
from medq_ray.evolve.curate import curate
from medq_ray.evolve.dataset import chats, write_dataset
from medq_ray.evolve.feed import measure
from medq_ray.evolve.sft import fine_tune
from medq_ray.schema import DROP, SAMPLE
from medq_ray.serving import start_ray


def evolve(
    folder: Path,
    *,
    config: Config,
    iteration: int,
    questions: pa.Table,
    annotations: pa.Table,
    verdicts: pa.Table,
    earlier: pa.Table | None,
    images: pa.Table,
    checkpoint: Path,
) -> dict:
    """Fine-tune `checkpoint` on this iteration's curated samples and, by `evolve.replay`, all earlier ones.

    questions, annotations, verdicts: QUESTION, ANNOTATION, VERDICT of this iteration. earlier: SAMPLE of all earlier
    iterations. images: POOL_IMAGE of all images of dev and test, and of all that any iteration asked about. Starts
    Ray where none runs. Writes new.parquet, dropped.parquet, train/samples.parquet, the same as a data set in dataset/
    (`evolve.dataset`), metrics.jsonl and checkpoint/. Equal inputs give equal bytes, with any number of kills in
    between.

    Returns the counts of samples and drops, the seconds and the samples/s of the training. Raises ValueError when
    nothing is left to train on, and what `fine_tune` raises.
    """
    new, dropped = curate(
        questions,
        annotations,
        verdicts,
        images,
        earlier=earlier,
        settings=config.evolve,
        iteration=iteration,
    )
    replayed = [earlier.cast(SAMPLE)] if earlier is not None and config.evolve.replay == "all" else []
    samples = pa.concat_tables([*replayed, new]).sort_by("question_id")
    assert len(set(samples["question_id"].to_pylist())) == samples.num_rows, "a question was trained on twice"
    start_ray()
    loaders = config.evolve.loaders * config.evolve.workers
    tokens = measure(chats(samples, images).to_pylist(), checkpoint, loaders)
    long = too_long(tokens, config.evolve.max_tokens)
    new, samples = (without(table, long["id"]) for table in (new, samples))
    dropped = pa.concat_tables([dropped, long]).sort_by("id")
    write_table(folder / "new.parquet", new, SAMPLE)
    write_table(folder / "dropped.parquet", dropped, DROP)
    if not samples.num_rows:
        raise ValueError(
            f"{folder / 'new.parquet'}: no sample to train on; all {annotations.num_rows} annotations were dropped, "
            f"for the reasons in {folder / 'dropped.parquet'}"
        )
    write_table(folder / "train" / "samples.parquet", samples, SAMPLE)
    write_dataset(folder / "dataset", samples, images)
    speed = fine_tune(
        folder,
        dataset=folder / "dataset",
        tokens={name: tokens[name] for name in samples["question_id"].to_pylist()},
        checkpoint=checkpoint,
        config=config,
        iteration=iteration,
    )
    drops = Counter(dropped["step"].to_pylist())
    return {
        "new": new.num_rows,
        "trained_on": samples.num_rows,
        "dropped": dropped.num_rows,
        **{f"dropped_{step}": count for step, count in sorted(drops.items())},
        **speed,
    }


def too_long(tokens: dict[str, int], most: int) -> pa.Table:
    """schema.DROP of the samples that no row of `most` tokens can hold; nothing is ever cut off silently."""
    rows = [
        {"id": name, "step": "length", "reason": f"{count} tokens, evolve.max_tokens={most}", "keeper": ""}
        for name, count in sorted(tokens.items())
        if count > most
    ]
    return pa.Table.from_pylist(rows, schema=DROP)


def without(samples: pa.Table, names: pa.ChunkedArray) -> pa.Table:
    return samples.filter(pc.invert(pc.is_in(samples["question_id"], value_set=names.combine_chunks())))
