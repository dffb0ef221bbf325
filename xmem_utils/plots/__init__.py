"""How the study draws: one colour a modality, an interval on every estimate, the table beside the figure.

A module for each notebook. Plots read tables and nothing else: what a column holds (a method, a task, a measure) is
written here as it is there, so that drawing loads no torch.
"""

from xmem_utils.plots.closing import decomposition, mitigation, mitigation_pairs
from xmem_utils.plots.forest import claims
from xmem_utils.plots.forgetting import (
    unlearning_attacks,
    unlearning_curves,
    unlearning_frontier,
    unlearning_matrix,
    unlearning_sequence,
    unlearning_tradeoff,
    unlearning_transfer,
)
from xmem_utils.plots.gap import answers, attributes_by_name, dose_response, gap_curves, gap_matrix
from xmem_utils.plots.hops import multihop, multihop_controls, multihop_curves, multihop_decomposition
from xmem_utils.plots.layers import mechanism, mechanism_controls
from xmem_utils.plots.models import capability, capability_knowledge, capability_probe, capability_slope
from xmem_utils.plots.parts import save, save_table, style
from xmem_utils.plots.people import attribute_counts, base_curves, base_evaluation, contact_sheet
