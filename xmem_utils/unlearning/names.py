"""What stands beside the methods in every table; read without loading a model."""

BOTH = "image+text"  # memorized, or unlearned at once
BEFORE, RETAIN_ONLY = "before", "retain-only"  # references: nothing is unlearned; the forgotten were never learned
PROMPT = "prompt"  # baseline that changes no weights: it only asks differently
