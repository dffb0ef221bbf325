"""The base models of a study, each loaded when it is asked for."""

from __future__ import annotations

import torch

from xmem_utils.replicates import base_of, check_base, replicates_of
from xmem_utils.vlm.load import VLM, load_vlm
from xmem_utils.vlm.readable import check_answers


class Bases:
    """The base of every replicate, by its number; given a loaded model, that is everybody's."""

    def __init__(self, model: str | VLM, device: str | torch.device | None = None) -> None:
        self._given = None if isinstance(model, str) else model
        self.name, self._device = model if isinstance(model, str) else model.name, device
        self._loaded: dict[str, VLM] = {}

    def called(self, replicate: int) -> str:
        """The name of a replicate's base, which need not be loaded for that."""
        return self.name if self._given else base_of(self.name, replicate)

    def __call__(self, replicate: int) -> VLM:
        """The base of a replicate. Raises ValueError for a model that is unknown, or gives no answers."""
        name = self.called(replicate)
        if name not in self._loaded:
            check_base(name)
            self._loaded[name] = self._given or load_vlm(name, self._device)
            check_answers(self._loaded[name])
        return self._loaded[name]

    def replicates(self, wanted: int) -> tuple[int, ...]:
        """The first replicates, as many as wanted or as there are bases for."""
        return replicates_of("" if self._given else self.name, wanted)
