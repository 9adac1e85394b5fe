"""The base class of layers and blocks whose forward calls the kernels."""

from typing import Any

from torch import nn

from lightning_practices._arguments import check_flag


class FusedLayer(nn.Module):
    """Base class of layers and blocks whose forward calls the kernels.

    TorchScript compiles the source code of a layer, and can't compile the code that calls a kernel.
    Its own error would name that code alone.
    """

    def __prepare_scriptable__(self) -> Any:
        """Raise an error that says what to do; ``torch.jit.script`` calls this method first.

        It doesn't return torch's layer, since ``torch.jit.script`` would put it into the model.
        """
        raise RuntimeError(
            f"torch.jit.script can't compile the fused {type(self).__name__}: call"
            " lightning_practices.surgery.unfuse(model) first, or use torch.jit.trace or"
            " torch.export. (A layer that was made as one of lightning_practices.nn stays fused:"
            " make torch's layer instead, which loads the same state_dict.)"
        )


def without_bias(bias: bool) -> dict[str, bool]:
    """Return the keyword that leaves out a norm's bias.

    Older versions of torch have no such argument, and refuse it even if it is true.
    """
    return {} if check_flag("bias", bias) else {"bias": False}
