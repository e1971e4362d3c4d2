"""Where metrics are kept: in a file of the run, or as a local draft of an object.

Knows places; the lines are `log.MetricsLog`'s.
"""

from __future__ import annotations

from biggraph.log import MetricsLog
from biggraph.storage.layout import METRICS
from biggraph.storage.opening import folder_of, local_copy
from biggraph.storage.place import Place


def keep_metrics(place: Place, name: str = METRICS) -> MetricsLog:
    """Return the metrics of a run or of one worker, to go on with.

    Objects cannot be appended to: there the lines are in a local temporary file, and the object is
    replaced with all of them after each event but the frequent one, "bucket".

    Raises:
        StorageError: the place refused.
    """
    path = local_copy(place, name)
    in_place = folder_of(place) is not None
    metrics = MetricsLog(path, None if in_place else lambda lines: place.replace(name, lines))
    metrics.repair()
    return metrics
