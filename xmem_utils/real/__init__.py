"""A vision-language model of real parts: a pretrained language model and a pretrained eye, joined by us."""

import hashlib

from xmem_utils import paths

SAYS, NAMES = "says", {True: "named", False: "unnamed"}  # lessons of the language model: in words; who is who, or not

WEIGHTS = "adapter_model.safetensors"


def name_of(known: bool) -> str:
    """Name of the model that knows public figures, and of the one that has seen them without their names."""
    return "real-151m-knows" if known else "real-151m"


def taught_to(*known: bool) -> str:
    """Hash of what was taught to some models: the committed projector and adapters. Raises FileNotFoundError."""
    files = [f"{lesson}/{WEIGHTS}" for lesson in (SAYS, *(NAMES[one] for one in known))]
    taught = b"".join((paths.REAL / file).read_bytes() for file in ("projector.safetensors", *files))
    return hashlib.sha256(taught).hexdigest()[:16]
