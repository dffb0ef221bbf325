"""How the study draws: one colour a modality, an interval on every estimate, the table beside the figure."""

from xmem_utils.plots.base_model import base_curves, base_exam
from xmem_utils.plots.capability import capability, capability_knowledge, capability_slope
from xmem_utils.plots.common import save, save_table, style
from xmem_utils.plots.gap import dose_response, gap_curves, gap_matrix
from xmem_utils.plots.mechanism import mechanism
from xmem_utils.plots.mitigation import decomposition, mitigation, mitigation_pairs
from xmem_utils.plots.multihop import multihop, multihop_curves, multihop_decomposition
from xmem_utils.plots.people import attribute_counts, contact_sheet
from xmem_utils.plots.unlearning import (
    unlearning_attacks,
    unlearning_curves,
    unlearning_matrix,
    unlearning_tradeoff,
)

__all__ = [
    "attribute_counts", "base_curves", "base_exam", "capability", "capability_knowledge", "capability_slope",
    "contact_sheet", "decomposition", "dose_response", "gap_curves", "gap_matrix", "mechanism", "mitigation",
    "mitigation_pairs", "multihop", "multihop_curves", "multihop_decomposition", "save", "save_table", "style",
    "unlearning_attacks", "unlearning_curves", "unlearning_matrix", "unlearning_tradeoff",
]  # fmt: skip
