"""A vision-language model of real parts: a pretrained language model and a pretrained eye, joined by us."""


def name_of(known: bool) -> str:
    """Name of the model that knows public figures, and of the one that knows nobody."""
    return "real-152m-knows" if known else "real-152m"
