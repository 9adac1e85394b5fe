"""The base class of layers and blocks whose forward calls the kernels."""

from typing import Any

from torch import Tensor, nn

import lightning_kernels
from lightning_practices._arguments import check_flag

# Key in a module's ``__dict__`` that holds the class that `surgery.fuse` has replaced. Deepcopy and
# pickle keep the key, ``state_dict`` does not.
FUSED_FROM = "_fused_from"

# Key that holds why measurements have restored a layer's class. `surgery.fuse` without a batch
# leaves such a layer alone, and blocks don't fold it.
LEFT = "_left_by_measurement"


class FusedLayer(nn.Module):
    """Base class of layers and blocks whose forward calls the kernels.

    TorchScript compiles the source code of a layer, and can't compile the code that calls a kernel.
    Its own error would name that code alone.
    """

    def __prepare_scriptable__(self) -> Any:
        """Raise an error that says what to do; ``torch.jit.script`` calls this method first.

        It doesn't return torch's layer, since ``torch.jit.script`` would put it into the model.
        """
        if FUSED_FROM in vars(self):
            advice = "call lightning_practices.surgery.unfuse(model) first, or use torch.jit.trace"
        else:
            advice = (
                "surgery.unfuse leaves it, since it was made as a layer of lightning_practices.nn."
                " Make torch's layer instead, which loads the same state_dict, or use"
                " torch.jit.trace"
            )
        raise RuntimeError(
            f"torch.jit.script can't compile the fused {type(self).__name__}: {advice} or"
            " torch.export"
        )


def refuse_proxy(x: Tensor) -> None:
    """Raise an error that says what to do if ``x`` is a proxy: ``torch.fx`` traces the layer.

    Layers whose checks read the shape call it first, since a proxy has no shape.
    """
    if type(x) is not Tensor:
        lightning_kernels.route(x)  # raises the error for an object that is no tensor


def without_bias(bias: bool) -> dict[str, bool]:
    """Return the keyword that leaves out a norm's bias.

    Older versions of torch have no such argument, and refuse it even if it is true.
    """
    return {} if check_flag("bias", bias) else {"bias": False}
