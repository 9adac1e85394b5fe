"""Exceptions that torch and Lightning raise in a step, and what a user's code does to get them."""

import re
import sysconfig
import traceback
from pathlib import Path
from typing import NamedTuple

import lightning
import torch

_LONGEST = 240  # characters of an exception's text in a finding


class Explanation(NamedTuple):
    """Why an exception was raised.

    Attributes:
        cause: What the program does, as the end of a sentence.
        remedy: What mends it.
    """

    cause: str
    remedy: str


# Regular expressions of the texts of exceptions, in lower case.
_KNOWN: tuple[tuple[str, Explanation], ...] = (
    (
        r"expected all tensors to be on the same device|should be the same or input should be a"
        r"|not compiled with cuda enabled|found no nvidia driver|no cuda gpus are available"
        r"|cannot access accelerator device|torch not compiled with|invalid device",
        Explanation(
            "tensors are put on another device than the module's, or on one that this machine"
            " doesn't have",
            "leave .cuda() and .to('cuda') out: Lightning moves the module and the batch. Make"
            " tensors with device=self.device, and keep constants by self.register_buffer",
        ),
    ),
    (
        r"backward through the graph a second time",
        Explanation(
            "the loss's graph was differentiated before: by a backward() in the step, which"
            " Lightning calls again under automatic optimization, or in the step before, through a"
            " tensor that was kept without detach()",
            "leave backward(), optimizer.step() and optimizer.zero_grad() out of training_step, or"
            " set self.automatic_optimization = False and call self.manual_backward(loss); detach"
            " what is kept from step to step",
        ),
    ),
    (
        r"does not require grad and does not have a grad_fn",
        Explanation(
            "what is differentiated has no graph: it was made under no_grad, by detach(), item(),"
            " argmax or of constants",
            "compute it from the module's output itself, with gradients on",
        ),
    ),
    (
        r"modified by an inplace operation",
        Explanation(
            "a tensor that the backward pass needs was changed in place, by +=, an assignment to"
            " elements, inplace=True, or a step of an optimizer between forward and backward",
            "x = x + y in place of x += y; ReLU(inplace=False); all optimizer.step() after the"
            " backward passes that use their parameters",
        ),
    ),
    (
        r"a leaf variable that requires grad is being used in an in-place",
        Explanation(
            "a parameter is changed in place with gradients on",
            "with torch.no_grad(): around the change",
        ),
    ),
    (
        r"mat1 and mat2 shapes cannot be multiplied|mat1 and mat2 must|size mismatch.*vec"
        r"|input\.size\(-1\) must be equal to input_size|expected input with \d+ channels"
        r"|to have \d+ channels, but got|normalized_shape|running_mean should contain",
        Explanation(
            "a layer gets another number of features or channels than it was made for",
            "print x.shape before the layer, and make the layer for its last dimension (channels:"
            " dimension 1); nn.LazyLinear finds the number itself; flatten(1) keeps the batch",
        ),
    ),
    (
        r"index out of range in self",
        Explanation(
            "an embedding gets an index below 0, or of num_embeddings and more",
            "nn.Embedding(num_embeddings=highest index + 1, ...); indices begin at 0",
        ),
    ),
    (
        r"target \S+ is out of bounds|assertion .*cur_target",
        Explanation(
            "a target is no class of the output: classes are 0 to C - 1 for C outputs",
            "as many outputs as classes, and targets that begin at 0",
        ),
    ),
    (
        r"expected scalar type|expected tensor for argument|must have the same dtype"
        r"|found dtype|but found double|result type .* can't be cast|same dtype"
        r"|expected floating point type|not implemented for '(long|int|byte|bool|short)'",
        Explanation(
            "tensors have another dtype than the function takes: layers take the dtype of their"
            " weights, mostly float32; cross entropy and embeddings take int64",
            "x = x.float() for inputs and targets of regression, y = y.long() for classes, where"
            " the data is made",
        ),
    ),
    (
        r"must match the size of tensor|must match the existing size|is invalid for input of size"
        r"|sizes of tensors must match|using a target size|input batch_size",
        Explanation(
            "tensors have shapes that don't fit each other",
            "print the shapes before this line; a reshape names the batch's dimension: x.view("
            "len(x), -1)",
        ),
    ),
    (
        r"stack expects each tensor to be equal size|default_collate|each element in list of batch",
        Explanation(
            "samples of a batch have different shapes or kinds, and can't be stacked",
            "pad or crop samples to one shape in the dataset, or give DataLoader a collate_fn that"
            " pads",
        ),
    ),
    (
        r"expected more than 1 value per channel when training",
        Explanation(
            "batch norm gets one value for each channel, such as a last batch of one sample",
            "DataLoader(..., drop_last=True), or nn.GroupNorm",
        ),
    ),
)  # fmt: skip


def explanation_of(error: BaseException) -> Explanation | None:
    """Return why an exception of torch or Lightning was raised; ``None`` if it isn't known."""
    text = " ".join(str(error).lower().split())
    return next((why for pattern, why in _KNOWN if re.search(pattern, text)), None)


def shown(error: BaseException) -> str:
    """Return class and text of an exception in one line."""
    text = " ".join(str(error).split())
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST].rstrip()}..."
    return f"{type(error).__name__}: {text}"


def line_of(error: BaseException) -> str:
    """Return the last line of a user's file on the way to an exception, as ``"model.py:12"``."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(_LIBRARIES):
            return f"{Path(frame.filename).name}:{frame.lineno}"
    return ""


_LIBRARIES = (
    *{f"{Path(sysconfig.get_path(name))}/" for name in ("stdlib", "purelib", "platlib")},
    *(f"{Path(one.__file__ or '').parent}/" for one in (torch, lightning)),
    f"{Path(__file__).parents[1]}/",
    "<",
)
