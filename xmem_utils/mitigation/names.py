"""Words of the tables, read without loading a model."""

BASELINE, BASELINE_START = "baseline", "baseline, from the start"
DESCRIBED = "describe, then recall"  # at inference: the baseline's model, shown the target view in its source modality
AMONG = "decoded among the names"  # at inference: the baseline's model, which may write nothing but the study's names
PAIRED = "self-labelled"  # by which it is measured how many people must be paired
# What trains from the start, and is held against BASELINE_START; all others go on from what memorized.
FRESH = (BASELINE_START, "captions, from the start", "lower rank", "lower learning rate")
STUDY, PUBLIC = "study", "public figures"  # groups of people
VIEW, CEILING = "view", "ceiling"  # tasks: what a model is asked with
