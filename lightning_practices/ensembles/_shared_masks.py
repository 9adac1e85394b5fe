"""Dropout masks that all samples of a pass share."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from hashlib import blake2b
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torchvision import ops

from lightning_practices.nn import DropConnectLinear

# Layers that drop, and the attribute with the rate: a new one is one more line. In evaluation each
# passes its input on, but for those of the second half, which drop from something else.
_RATES: dict[type[nn.Module], str] = {
    _DropoutNd: "p",
    ops.StochasticDepth: "p",
    ops.DropBlock2d: "p",
    nn.MultiheadAttention: "dropout",
    DropConnectLinear: "p",
}
_TIMM_RATES = {"DropPath": "drop_prob", "DropBlock2d": "drop_prob"}


class SharedMasks:
    """The masks of some passes, drawn from the seed, the pass, the layer's number and its call.

    Attributes:
        size: Samples in the batch.
        layers: Those that drop, by name.
        calls: How often each has run in the last forward.

    Raises:
        RuntimeError: If nothing in ``model`` drops, or something within a recurrent layer does.
    """

    def __init__(self, model: nn.Module, seed: int, size: int) -> None:
        self.size = size
        self.layers = _dropping(model)
        self.calls: Counter[str] = Counter()
        self._model = model
        self._numbers = {name: number for number, name in enumerate(self.layers)}
        self._seed = seed
        self._passes = range(0)

    @property
    def one_pass_only(self) -> bool:
        """Whether a forward can hold only one: attention doesn't tell passes apart."""
        return any(isinstance(layer, nn.MultiheadAttention) for layer in self.layers.values())

    def begin(self, first: int, count: int) -> None:
        """Begin a forward of ``count`` passes, one after another in dimension 0."""
        self._passes = range(first, first + count)
        self.calls.clear()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the layers drop what the masks say, with all of the model in evaluation."""
        with ExitStack() as stack:
            for module in self._model.modules():  # the flag alone: train() may do more
                stack.callback(setattr, module, "training", module.training)
                module.training = False
            for name, layer in self.layers.items():
                forward: Callable[..., Any]
                if isinstance(layer, nn.MultiheadAttention):
                    forward = partial(self._attend, name, layer, layer.forward)
                elif isinstance(layer, DropConnectLinear):
                    forward = partial(self._connect, name, layer, layer.forward)
                else:
                    hook = partial(self._scale, name)
                    stack.enter_context(layer.register_forward_pre_hook(hook, with_kwargs=True))
                    continue
                stack.callback(_set_forward, layer, vars(layer).get("forward"))
                _set_forward(layer, forward)
            # The fused encoder of torch never calls its layers.
            stack.callback(
                torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled()
            )
            torch.backends.mha.set_fastpath_enabled(False)
            # Compiled code doesn't look for hooks that came later.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(torch.no_grad())
            yield

    def _scale(
        self, name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return a layer's arguments with its input masked: in evaluation it passes that on."""
        if args:
            return (self._masked(name, layer, args[0]), *args[1:]), kwargs
        first = next(iter(signature(layer.forward).parameters))
        return args, {**kwargs, first: self._masked(name, layer, kwargs[first])}

    def _masked(self, name: str, layer: nn.Module, x: Tensor) -> Tensor:
        passes = len(self._passes)
        self._check_size(name, x, 0)
        drawn = [self._draw(name, layer, index, x) for index in self._passes]
        self.calls[name] += 1
        shift, factor = (torch.stack(tensors).to(x.device) for tensors in zip(*drawn, strict=True))
        y: Tensor = x.reshape(passes, self.size, *x.shape[1:]) * factor  # in x's memory format
        return y.add_(shift).flatten(0, 1).to(x.dtype)

    def _draw(self, name: str, layer: nn.Module, index: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what ``layer`` adds to a sample, which only alpha dropout does, and its factor."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        device = x.device if x.is_cuda else torch.device("cpu")
        sample = torch.zeros((1, *x.shape[1:]), dtype=dtype, device=device)
        with self._seeded(name, layer, index, device):
            shift = layer.forward(sample.clone())
        with self._seeded(name, layer, index, device):
            return shift, layer.forward(sample + 1) - shift

    def _attend(
        self,
        name: str,
        layer: nn.MultiheadAttention,
        run: Callable[..., tuple[Tensor, Tensor | None]],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return what ``run`` does, the layer's own forward, with one mask for all samples."""
        batch = 0 if layer.batch_first else 1
        self._check_size(name, query, batch)
        if attn_mask is not None and attn_mask.dim() == 3:  # one for each sample and head
            attn_mask = attn_mask.reshape(self.size, layer.num_heads, *attn_mask.shape[1:])

        def attend_one(*tensors: Tensor | None) -> tuple[Tensor, ...]:
            query, key, value, padding, mask = tensors
            output, weights = run(
                query, key, value, padding, need_weights, mask, average_attn_weights, is_causal
            )
            return (output,) if weights is None else (output, weights)

        of_padding = None if key_padding_mask is None else 0
        of_mask = 0 if attn_mask is not None and attn_mask.dim() == 4 else None
        with self._seeded(name, layer, self._passes[0], query.device):
            output, *weights = torch.vmap(
                attend_one,
                in_dims=(batch, batch, batch, of_padding, of_mask),
                out_dims=(batch, 0) if need_weights else (batch,),
                randomness="same",
            )(query, key, value, key_padding_mask, attn_mask)
        self.calls[name] += 1
        return output, weights[0] if weights else None

    def _connect(
        self, name: str, layer: DropConnectLinear, run: Callable[[Tensor], Tensor], input: Tensor
    ) -> Tensor:
        """Return what ``run`` does, the layer's own forward, with one mask of weights a pass."""
        self._check_size(name, input, 0)
        outputs = []
        per_sample, layer.per_sample = layer.per_sample, False
        try:
            for index, x in zip(self._passes, torch.split(input, self.size), strict=True):
                with self._seeded(name, layer, index, input.device):
                    outputs.append(run(x))
        finally:
            layer.per_sample = per_sample
        self.calls[name] += 1
        return torch.cat(outputs)

    @contextmanager
    def _seeded(
        self, name: str, layer: nn.Module, index: int, device: torch.device
    ) -> Iterator[None]:
        """Have ``layer`` drop as it does in this pass, and leave the generator as it was."""
        key = f"{self._seed} {index} {self._numbers[name]} {self.calls[name]}".encode()
        generator = (
            torch.cuda.default_generators[device.index]
            if device.type == "cuda"
            else torch.default_generator
        )
        state = generator.get_state()
        generator.manual_seed(int.from_bytes(blake2b(key, digest_size=7).digest()))
        layer.training = True
        try:
            yield
        finally:
            layer.training = False
            generator.set_state(state)

    def _check_size(self, name: str, x: Tensor, dim: int) -> None:
        expected = len(self._passes) * self.size
        if x.dim() <= dim or x.shape[dim] != expected:
            raise RuntimeError(
                f"{name or 'the model'} drops from a tensor of shape {tuple(x.shape)}, where"
                f" dimension {dim} should be the batch, of size {expected}: a mask that all samples"
                " share can't be told from it. Put the samples there (batch_first=True) or set the"
                " layer's rate to 0"
            )


def _set_forward(layer: nn.Module, forward: Callable[..., Any] | None) -> None:
    """Give one layer a ``forward`` of its own, or its class's back."""
    if forward is None:
        del vars(layer)["forward"]
    else:
        vars(layer)["forward"] = forward


def _dropping(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of ``model`` that drop, by name."""
    timm = sys.modules.get("timm.layers")  # loaded by whoever has made such a layer
    rates = _RATES | {getattr(timm, cls): rate for cls, rate in _TIMM_RATES.items() if timm}
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase) and module.dropout and module.num_layers > 1:
            raise RuntimeError(
                f"{name or 'the model'} ({type(module).__name__}) drops within itself, where masks"
                " can't be shared by all samples: put nn.Dropout between layers of num_layers=1,"
                " or set its `dropout` to 0 to leave it off"
            )
        if any(isinstance(module, kind) and getattr(module, rate) for kind, rate in rates.items()):
            layers[name] = module
    if not layers:
        raise RuntimeError(
            f"nothing in {type(model).__name__} drops, so all passes would be the same: looked for"
            f" {', '.join(kind.__name__.lstrip('_') for kind in rates)} and their subclasses with a"
            " rate above 0. F.dropout in a forward isn't seen: make it an nn.Dropout"
        )
    return layers
