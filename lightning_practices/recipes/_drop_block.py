"""DropBlock in torchvision's ResNets, where its authors put it."""

from itertools import chain

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from lightning_practices.nn import DropBlock2d
from lightning_practices.recipes._errors import DataError


def add_drop_block(network: nn.Module, p: float, block_size: int = 7) -> None:
    """Put a DropBlock after each norm and shortcut of a ResNet's last two stages, in place.

    The last stage drops at the rate ``p``, the one before it at a quarter of it, since its maps
    have four times as many elements. Names of the norms in a ``state_dict`` change, so load
    pretrained weights before.

    Ghiasi, Lin and Le, 2018, *DropBlock: A regularization method for convolutional networks*,
    arXiv:1810.12890: for ResNet-50 on ImageNet ``p=0.1`` and ``block_size=7``, with ``p`` raised
    linearly from 0, see :class:`~lightning_practices.callbacks.DropRateSchedule`.

    Args:
        network: A ResNet of torchvision.
        p: The approximate share of dropped elements in the last stage.
        block_size: The side of the squares, in elements.

    Raises:
        DataError: If the network isn't a ResNet of torchvision.
    """
    if not isinstance(network, ResNet):
        raise DataError(
            "DropBlock is put into torchvision's ResNets only, such as resnet50, but the network is"
            f" a {type(network).__name__}: choose a ResNet, or drop_block=0"
        )
    for stage, rate in ((network.layer3, p / 4), (network.layer4, p)):
        for block in stage:
            _add_to_block(block, rate, block_size)


def _add_to_block(block: BasicBlock | Bottleneck, p: float, block_size: int) -> None:
    norms = [name for name, _ in block.named_children() if name.startswith("bn")]
    for name in norms:
        setattr(block, name, nn.Sequential(getattr(block, name), DropBlock2d(p, block_size)))
    shortcut = [] if block.downsample is None else block.downsample
    block.downsample = nn.Sequential(*chain(shortcut, [DropBlock2d(p, block_size)]))
