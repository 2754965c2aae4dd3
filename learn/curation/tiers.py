"""A mix of easy, medium and hard examples, by how sure a head is that has not seen them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def mixed(chance: NDArray[np.float32], shares: Sequence[float], seed: int) -> NDArray[np.int64]:
    """Positions, sorted, of as many examples as make up ``shares`` of the easiest to hardest tier.

    chance: float32 [n], the out-of-fold probability of each example's own label. The tiers are
    of equal size; what a tier has too much of is left out at random.

    >>> mixed(np.linspace(0, 1, 9).astype(np.float32), (0.5, 0.25, 0.25), seed=0).tolist()[-3:]
    [6, 7, 8]
    """
    tiers = np.array_split(np.argsort(-chance, kind="stable"), len(shares))
    total = min(len(tier) / share for tier, share in zip(tiers, shares, strict=True) if share)
    generator = np.random.default_rng(seed)
    chosen = [
        generator.choice(tier, min(len(tier), round(total * share)), replace=False)
        for tier, share in zip(tiers, shares, strict=True)
    ]
    return np.sort(np.concatenate(chosen))
