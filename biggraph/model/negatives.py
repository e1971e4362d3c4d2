"""Negatives: which entities each positive is compared with, and which of them are masked.

Knows offsets inside one partition; nothing of rows, scores or relations' operators. Every
candidate that *is* the true entity is masked wherever it came from, and so is padding.

Axes: C chunks, P positives per chunk, N candidates per chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Candidates:
    """Entities of one side that the positives of each chunk are compared with.

    Args:
        ids_CN: offsets in the partition, int64; None stands for every entity, in order.
        mask_CPN: bool, True where a candidate is no negative of that positive.
    """

    ids_CN: Tensor | None
    mask_CPN: Tensor


def sample_candidates(
    true_CP: Tensor,
    valid_CP: Tensor,
    *,
    count: int,
    in_batch: bool,
    uniform: int,
    generator: torch.Generator,
) -> Candidates:
    """Draw shared negatives for every chunk: its own entities, then uniform ones.

    In-batch candidates follow the graph's degrees, uniform ones reach rare entities
    (Lerer et al., SysML 2019, sec. 4.3).

    Args:
        true_CP: true entity of each positive, int64.
        valid_CP: bool, False at padding.
        count: entities in the partition.
        in_batch: use the chunk's own entities.
        uniform: uniform candidates for each chunk, drawn with replacement.
        generator: source of randomness.
    """
    chunks = true_CP.shape[0]
    parts, usable = [], []
    if in_batch:
        parts.append(true_CP)
        usable.append(valid_CP)
    if uniform:
        drawn_CU = torch.randint(count, (chunks, uniform), generator=generator)
        parts.append(drawn_CU)
        usable.append(torch.ones_like(drawn_CU, dtype=torch.bool))
    ids_CN = torch.cat(parts, dim=1)
    unusable_CN = ~torch.cat(usable, dim=1)
    mask_CPN = ids_CN.unsqueeze(1) == true_CP.unsqueeze(2)
    if in_batch and not bool(valid_CP.all()):
        mask_CPN |= unusable_CN.unsqueeze(1)
    return Candidates(ids_CN, mask_CPN)


def all_candidates(true_CP: Tensor, *, count: int) -> Candidates:
    """Return every entity of the partition, the true one masked."""
    mask_CPN = torch.zeros((*true_CP.shape, count), dtype=torch.bool)
    mask_CPN.scatter_(2, true_CP.unsqueeze(2), True)
    return Candidates(None, mask_CPN)


def mask_known_in_chunk(
    candidates: Candidates, anchor_CP: Tensor, rel_CP: Tensor, true_CP: Tensor
) -> Candidates:
    """Mask candidates that another edge of the chunk with the same anchor and relation makes true.

    Args:
        candidates: for the replaced side.
        anchor_CP: the other end of each positive, int64.
        rel_CP: relations, int64.
        true_CP: entity on the replaced side, int64.
    """
    same_CPP = (anchor_CP.unsqueeze(1) == anchor_CP.unsqueeze(2)) & (
        rel_CP.unsqueeze(1) == rel_CP.unsqueeze(2)
    )
    chunk_C, p_C, q_C = torch.nonzero(same_CPP, as_tuple=True)
    others = p_C != q_C
    chunk_C, p_C, q_C = chunk_C[others], p_C[others], q_C[others]
    mask_CPN = candidates.mask_CPN.clone()
    true = true_CP[chunk_C, q_C]
    if candidates.ids_CN is None:
        mask_CPN[chunk_C, p_C, true] = True
    else:
        rows = (candidates.ids_CN[chunk_C] == true.unsqueeze(1)).nonzero(as_tuple=True)
        mask_CPN[chunk_C[rows[0]], p_C[rows[0]], rows[1]] = True
    return Candidates(candidates.ids_CN, mask_CPN)
