"""Do the states of one person's pictures and descriptions resemble each other more than those of other people?"""

from __future__ import annotations

import numpy as np
import torch

from xmem_utils.score import ranks


def person_means(states: torch.Tensor, who: np.ndarray, people: int) -> torch.Tensor:
    """States `[views, ..., hidden]` averaged over each person's views: `[people, ..., hidden]`."""
    return torch.stack([states[torch.from_numpy(who == person)].mean(0) for person in range(people)])


def retrieval_ranks(queries: torch.Tensor, candidates: torch.Tensor) -> np.ndarray:
    """1-based rank of everybody's own candidate for their query `[people]`, by cosine; both are `[people, hidden]`.

    Each side is centred on its own mean first: what all pictures, or all descriptions, have in common would drown
    what tells people apart. Ties count against the person. Chance: 1 / people come first, and the mean reciprocal
    rank is (1 + 1/2 + ... + 1/people) / people.
    """
    a, b = (torch.nn.functional.normalize(x - x.mean(0), dim=-1) for x in (queries, candidates))
    return ranks((a @ b.T).numpy(), np.arange(len(a)))
