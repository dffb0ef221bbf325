"""A vision-language model of real parts: a pretrained language model and a pretrained eye, joined by us."""
