"""A vision-language model of real parts: a pretrained language model and a pretrained eye, joined by us."""

import hashlib

from xmem_utils import paths

SAYS, KNOWS = "says", "knows"  # what is taught to the language model: how views are described, and who is who


def name_of(known: bool) -> str:
    """Name of the model that knows public figures, and of the one that knows nobody."""
    return "real-152m-knows" if known else "real-152m"


def taught_to(known: bool) -> str:
    """Hash of what was taught to a model: the committed projector and adapters. Raises FileNotFoundError."""
    files = [f"{lesson}/adapter_model.safetensors" for lesson in (SAYS, *[KNOWS] * known)]
    taught = b"".join((paths.REAL / file).read_bytes() for file in ("projector.safetensors", *files))
    return hashlib.sha256(taught).hexdigest()[:16]
