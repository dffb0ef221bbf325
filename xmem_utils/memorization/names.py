"""Names that records and tables share; no model is needed to read a table."""

# kinds of answer: the name, that of another person of the study, one the base knows, ...
NAME, OTHER = "name", "other name"
ANSWERS = (NAME, OTHER, "public figure", "nobody's name", "refusal", "collapse")
