"""Arrow tables as rows of Python, a few at one time: a table of 100,000 rows takes 10 MB, its rows as dicts 100."""

from collections.abc import Iterable, Iterator
from itertools import islice

import pyarrow as pa

CHUNK = 512
"""Rows that are Python objects at one time: 1 KB each."""


def rows_of(table: pa.Table) -> Iterator[dict]:
    """The rows as they lie."""
    for batch in table.to_batches(max_chunksize=CHUNK):
        yield from batch.to_pylist()


def table_of(rows: Iterable[dict], schema: pa.Schema) -> pa.Table:
    """A table of rows that need not be there at one time."""
    left = iter(rows)
    parts = iter(lambda: list(islice(left, CHUNK)), [])
    return pa.concat_tables([schema.empty_table(), *(pa.Table.from_pylist(part, schema=schema) for part in parts)])
