"""Arrow arrays over the memory of numpy columns, and back.

Arrow's own conversions import pandas wherever it is installed, which takes longer than to import a
small graph. Knows nothing of what columns mean.
"""

from __future__ import annotations

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
