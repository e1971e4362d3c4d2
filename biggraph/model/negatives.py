"""Negatives: which entities each positive is compared with, and which of them are masked.

Knows offsets inside one partition; nothing of rows, scores or relations' operators. Every
candidate that *is* the true entity is masked wherever it came from, and so is padding.

Axes: C chunks, P positives per chunk, N candidates per chunk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Candidates:
    """Entities of one side that the positives of each chunk are compared with.

    Args:
        ids_CN: offsets in the partition, int64; None stands for every entity, in order.
        mask_CPN: bool, True where a candidate is no negative of that positive.
        log_weight_CN: log of how many entities of the graph each candidate stands for, see
            `log_weights`; float32, [C, N] or [1, 1].
    """

    ids_CN: Tensor | None
    mask_CPN: Tensor
    log_weight_CN: Tensor


@dataclass(frozen=True)
class Population:
    """The entities that can be candidates on one side of a bucket's edges.

    Args:
        count: entities in the loaded partition.
        total: entities of the type in the whole graph.
        share: of the bucket's edges, how many end in each entity, float32 [count], summing to 1;
            None where in-batch candidates are not used.
    """

    count: int
    total: int
    share: Tensor | None = None


def log_weights(population: Population, ids_CN: Tensor, in_batch_C: Tensor, uniform: int) -> Tensor:
    """Return the log of 1 / expected occurrences of each candidate, so that sampling is unbiased.

    In-batch candidates favour entities with many edges: taken at face value they teach the model
    that popular entities are wrong answers. Weighted by 1 / (expected occurrences), the sum of
    exp(score) over the sample estimates the sum over all entities without bias, and the sampled
    softmax approaches the full one (Bengio and Senécal, IEEE TNN 2008, sec. III). A partition is
    a random sample of its type, so that its candidates stand for those of the others too.

    Args:
        population: of the replaced side.
        ids_CN: candidates, int64.
        in_batch_C: in-batch candidates of each chunk, float32.
        uniform: uniform candidates of each chunk.

    Returns:
        float32 [C, N], or [1, 1] where all weights are equal.
    """
    others = math.log(population.total / population.count)
    if population.share is None:
        return torch.full((1, 1), others - math.log(uniform / population.count))
    expected_CN = in_batch_C.unsqueeze(1) * population.share[ids_CN] + uniform / population.count
    return others - expected_CN.log()


def sample_candidates(
    true_CP: Tensor,
    valid_CP: Tensor,
    *,
    population: Population,
    uniform: int,
    generator: torch.Generator,
) -> Candidates:
    """Draw shared negatives for every chunk: its own entities if wanted, then uniform ones.

    In-batch candidates follow the graph's degrees, uniform ones reach rare entities
    (Lerer et al., SysML 2019, sec. 4.3).

    Args:
        true_CP: true entity of each positive, int64.
        valid_CP: bool, False at padding.
        population: of the replaced side; with shares, the chunk's own entities are candidates.
        uniform: uniform candidates for each chunk, drawn with replacement.
        generator: source of randomness.
    """
    chunks = true_CP.shape[0]
    parts, usable = [], []
    in_batch = population.share is not None
    if in_batch:
        parts.append(true_CP)
        usable.append(valid_CP)
    if uniform:
        drawn_CU = torch.randint(population.count, (chunks, uniform), generator=generator)
        parts.append(drawn_CU)
        usable.append(torch.ones_like(drawn_CU, dtype=torch.bool))
    ids_CN = torch.cat(parts, dim=1)
    unusable_CN = ~torch.cat(usable, dim=1)
    mask_CPN = ids_CN.unsqueeze(1) == true_CP.unsqueeze(2)
    if in_batch and not bool(valid_CP.all()):
        mask_CPN |= unusable_CN.unsqueeze(1)
    in_batch_C = valid_CP.sum(1).float()
    return Candidates(ids_CN, mask_CPN, log_weights(population, ids_CN, in_batch_C, uniform))


def all_candidates(true_CP: Tensor, *, population: Population) -> Candidates:
    """Return every entity of the partition, the true one masked."""
    mask_CPN = torch.zeros((*true_CP.shape, population.count), dtype=torch.bool)
    mask_CPN.scatter_(2, true_CP.unsqueeze(2), True)
    weight = math.log(population.total / population.count)
    return Candidates(None, mask_CPN, torch.full((1, 1), weight))


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
    return replace(candidates, mask_CPN=mask_CPN)
