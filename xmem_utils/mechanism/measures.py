"""What is measured, by the words of the tables: names alone, so that tables and plots load no model."""

LENS, LENS_RANK = "lens reciprocal rank", "lens rank"
RETRIEVED, RETRIEVED_RANK = "retrieved", "retrieval reciprocal rank"
PROBE = "probe"
# target run with the states of the person's own source run, at every position that predicts the name
OWN, OWN_FIRST, OWN_GAIN = "patched: name", "patched: first token", "patched: gain"
# control: with those of another person's source run
OTHERS, OTHERS_FIRST = "another's: that name", "another's: that first token"
OTHERS_GAIN = "another's: gain of that name"
OTHERS_OWN = "another's: own first token"  # bounds from above how often the own name is still said
# at the answer position alone
OWN_ALONE = "patched at the answer position alone: name"
OTHERS_ALONE = "another's at the answer position alone: that name"
RECALLED = "recalled"  # nothing patched
# what the first token of the name decides
AS_IT_IS, FIRST, REST = "said", "first token said", "rest said, the first token given"
FIRST_AMONG, FIRST_CALIBRATED = "said, first token among the names'", "said, first token calibrated"
BEGINNINGS = (AS_IT_IS, FIRST, FIRST_AMONG, FIRST_CALIBRATED, REST)
ANSWERING = (LENS, OWN, OTHERS, RECALLED, *BEGINNINGS)  # what the first figure shows; the rest are controls

BEFORE, PUBLIC_FIGURES = "before memorizing", "public figures"  # what stands beside the models that memorized
