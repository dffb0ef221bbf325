"""Words of the tables, read without loading a model."""

PLAIN, PLAIN_START = "plain", "plain, from the start"
DESCRIBED = "describe, then recall"  # at inference: the plain model, shown the target view in its source modality
PAIRED = "self-labelled"  # by which it is measured how many people must be paired
# What trains from the start, and is held against PLAIN_START; all others go on from what memorized.
FRESH = (PLAIN_START, "captions, from the start", "lower rank", "lower learning rate")
VIEW, CEILING, FIGURE = "view", "ceiling", "figure"  # probes: what a model is asked with
