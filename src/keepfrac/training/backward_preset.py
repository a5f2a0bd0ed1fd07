"""BackwardPreset: dense fine-tuning with a backward pass of its own, as one name that a user can type.

`method=norm` is `method=nosp backward=norm`, under the identity that it has always had. A preset names

    saver_class             what is attached to the model; its settings are the preset's own
"""

from keepfrac.sparse.protocol import BackwardSaver
from keepfrac.training.finetune import FineTune


class BackwardPreset(FineTune):
    """Dense fine-tuning by what `saver_class` saves for the backward pass."""

    replaces_backward = True
    saver_class: type[BackwardSaver]

    def __init__(self, net, task, loop, settings):
        super().__init__(net, task, loop, settings)
        self.backward_saver = self.saver_class(settings)

    def kept(self) -> dict:
        assert self.backward_saver is not None
        return self.backward_saver.kept() or super().kept()
