"""Negatives: which entities each positive is compared with, and which of them are masked.

Knows offsets inside one partition; nothing of rows, scores or relations' operators. Every
candidate that *is* the true entity is masked wherever it came from, and so is padding. All tensors
of a call are on one device, that of its generator, and so are the candidates.

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
        ids_CN: offsets in the loaded partition, int64; None stands for every entity, in order.
        mask_CPN: bool, True where one of these is no negative of that positive.
        outside_CM: rows of the reservoir that are candidates too, int64, [C, M] or, where `ids_CN`
            is None, [1, M]; None for none. No true entity is among them.
        log_weight_CK: log of how many entities of the graph each candidate stands for, those from
            outside last; float32, [C, N + M], or [1, ...] or [..., 1] where equal.
        row_scale: factor of the gradient of the candidates' rows, see `Population`.
    """

    ids_CN: Tensor | None
    mask_CPN: Tensor
    outside_CM: Tensor | None
    log_weight_CK: Tensor
    row_scale: float


@dataclass(frozen=True)
class Population:
    """The entities that can be candidates on one side of a bucket's edges.

    A partition is a random sample of its type. Without rows from outside, each candidate stands
    for `total / count` entities. With them it stands for its own partition, and as it is only
    pushed away by edges of its own buckets, one in `total / count`, its gradient is scaled up by
    that number instead.

    Args:
        count: entities in the loaded partition.
        total: entities of the type in the whole graph.
        outside: rows of the reservoir, from the type's other partitions.
        share: of the bucket's edges, how many end in each entity, float32 [count], summing to 1;
            None where in-batch candidates are not used.
    """

    count: int
    total: int
    outside: int = 0
    share: Tensor | None = None

    @property
    def scale(self) -> float:
        """Entities of the type for each one in the loaded partition."""
        return self.total / self.count


def far_count(population: Population, uniform: int) -> int:
    """Return how many of the uniform candidates come from outside: at most half."""
    if not population.outside:
        return 0
    return min(uniform // 2, round(uniform * (1 - 1 / population.scale)))


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
    (Lerer et al., SysML 2019, sec. 4.3). Of the uniform ones at most half come from outside.

    In-batch candidates favour entities with many edges: taken at face value they teach the model
    that popular entities are wrong answers. Weighted by 1 / (expected occurrences), the sum of
    exp(score) over the sample estimates the sum over all entities without bias, and the sampled
    softmax approaches the full one (Bengio and Senécal, IEEE TNN 2008, sec. III).

    Args:
        true_CP: true entity of each positive, int64.
        valid_CP: bool, False at padding.
        population: of the replaced side; with shares, the chunk's own entities are candidates.
        uniform: uniform candidates for each chunk, drawn with replacement.
        generator: source of randomness.
    """
    chunks = true_CP.shape[0]
    outside_CM = None
    if far := far_count(population, uniform):
        outside_CM = _draw(population.outside, (chunks, far), generator)
        uniform -= far
    ids_CN = _draw(population.count, (chunks, uniform), generator)
    expected_CN = torch.full(ids_CN.shape, uniform / population.count, device=ids_CN.device)
    mask_CPN = ids_CN.unsqueeze(1) == true_CP.unsqueeze(2)
    if population.share is not None:
        ids_CN = torch.cat((true_CP, ids_CN), dim=1)
        # A positive's own place in the chunk is masked: the others are one fewer.
        others_C1 = valid_CP.sum(1, keepdim=True).float() - 1
        expected_CN = others_C1 * population.share[ids_CN] + uniform / population.count
        own_CPP = true_CP.unsqueeze(1) == true_CP.unsqueeze(2)
        mask_CPN = torch.cat((own_CPP | ~valid_CP.unsqueeze(1), mask_CPN), dim=2)
    return _weighted(ids_CN, mask_CPN, outside_CM, -expected_CN.clamp_min(1e-9).log(), population)


def all_candidates(
    true_CP: Tensor, *, population: Population, outside: int, generator: torch.Generator
) -> Candidates:
    """Return every entity of the partition, the true one masked, and some from outside.

    Args:
        true_CP: true entity of each positive, int64.
        population: of the replaced side.
        outside: rows of the reservoir to draw, at most; where it has no more, each is taken once.
        generator: source of randomness.
    """
    here = true_CP.device
    mask_CPN = torch.zeros((*true_CP.shape, population.count), dtype=torch.bool, device=here)
    mask_CPN.scatter_(2, true_CP.unsqueeze(2), True)
    outside_CM = None
    if population.outside and outside:
        drawn_CM = _draw(population.outside, (1, outside), generator)
        whole_CM = torch.arange(population.outside, device=here).unsqueeze(0)
        outside_CM = whole_CM if population.outside <= outside else drawn_CM
    log_weight_CN = torch.zeros(1, population.count, device=here)
    return _weighted(None, mask_CPN, outside_CM, log_weight_CN, population)


def _draw(count: int, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    return torch.randint(count, shape, generator=generator, device=generator.device)


def _weighted(
    ids_CN: Tensor | None,
    mask_CPN: Tensor,
    outside_CM: Tensor | None,
    log_weight_CN: Tensor,
    population: Population,
) -> Candidates:
    """Complete weights that count in the loaded partition to those that count in the graph."""
    if outside_CM is None:
        log_weight_CN = log_weight_CN + math.log(population.scale)
        return Candidates(ids_CN, mask_CPN, None, log_weight_CN, 1.0)
    others = population.total - population.count
    log_weight = math.log(others / outside_CM.shape[1])
    far_CM = torch.full(outside_CM.shape, log_weight, device=outside_CM.device)
    log_weight_CK = torch.cat((log_weight_CN, far_CM), dim=1)
    return Candidates(ids_CN, mask_CPN, outside_CM, log_weight_CK, population.scale)


def mask_known_in_chunk(
    candidates: Candidates, anchor_CP: Tensor, rel_CP: Tensor, true_CP: Tensor, valid_CP: Tensor
) -> Candidates:
    """Mask candidates that another edge of the chunk with the same anchor and relation makes true.

    Args:
        candidates: for the replaced side.
        anchor_CP: the other end of each positive, int64.
        rel_CP: relations, int64.
        true_CP: entity on the replaced side, int64.
        valid_CP: bool, False at padding, which is no edge.
    """
    same_CPP = (anchor_CP.unsqueeze(1) == anchor_CP.unsqueeze(2)) & (
        rel_CP.unsqueeze(1) == rel_CP.unsqueeze(2)
    )
    same_CPP &= valid_CP.unsqueeze(1) & valid_CP.unsqueeze(2)
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
