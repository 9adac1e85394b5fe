"""transformers' activations that the kernels know, for all blocks that fold an activation."""

from transformers import activations

from lightning_practices.nn._norm_activation import add_activation
from lightning_practices.nn.blocks.block import fingerprint

if fingerprint(activations.SiLUActivation.forward) == "e730f54291b8":
    add_activation(activations.SiLUActivation, "silu")
if fingerprint(activations.GELUActivation.forward) == "618093a6bcb8":
    add_activation(activations.GELUActivation, "gelu", "act")
