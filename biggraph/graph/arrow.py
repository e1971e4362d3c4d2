"""Arrow arrays over the memory of numpy columns, and back.

Arrow's own conversions import pandas wherever it is installed, which takes longer than to import a
small graph. Knows nothing of what columns mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def to_arrow(values: np.ndarray) -> pa.Array:
    """Return a numeric column as an Arrow array over the same memory."""
    values = np.ascontiguousarray(values)
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def to_numpy(column: pa.Array) -> NDArray[Any]:
    """Return a numeric column without nulls as a numpy view."""
    dtype = np.dtype(column.type.to_pandas_dtype())
    if not len(column):
        return np.empty(0, dtype)
    return np.frombuffer(column.buffers()[1], dtype, len(column), column.offset * dtype.itemsize)


def to_rows(columns: Sequence[np.ndarray | pa.Array], schema: pa.Schema) -> pa.RecordBatch:
    """Return columns, numpy or Arrow, as a record batch."""
    arrays = [to_arrow(c) if isinstance(c, np.ndarray) else c for c in columns]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def numbers(batch: pa.RecordBatch, name: str) -> NDArray[Any]:
    """Return a fixed-width column as a numpy view."""
    return to_numpy(batch.column(name))
