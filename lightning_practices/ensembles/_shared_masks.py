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

# Layers that drop, and the attribute that holds their rate. In eval mode the first three return
# their input. The last two drop attention weights and weights of a linear layer.
_RATES: dict[type[nn.Module], str] = {
    _DropoutNd: "p",
    ops.StochasticDepth: "p",
    ops.DropBlock2d: "p",
    nn.MultiheadAttention: "dropout",
    DropConnectLinear: "p",
}
_TIMM_RATES = {"DropPath": "drop_prob", "DropBlock2d": "drop_prob"}


class SharedMasks:
    """The dropout masks of several passes. Seed, pass, layer and call determine each mask.

    Attributes:
        size: Number of samples in the batch.
        layers: The layers that drop, by name.
        calls: Number of calls of each layer in the current or last forward.

    Raises:
        RuntimeError: If no layer of ``model`` drops, or a recurrent layer drops between its layers.
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
        """Whether one forward can run only one pass, since attention has one mask per call."""
        return any(isinstance(layer, nn.MultiheadAttention) for layer in self.layers.values())

    def begin(self, first: int, count: int) -> None:
        """Start a forward of ``count`` passes, which follow each other in dimension 0."""
        self._passes = range(first, first + count)
        self.calls.clear()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Apply the masks in all layers that drop, with all modules in eval mode."""
        with ExitStack() as stack:
            for module in self._model.modules():  # a model may override train()
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
            # Torch's fused encoder bypasses the forward of its layers, and so the masks.
            stack.callback(
                torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled()
            )
            torch.backends.mha.set_fastpath_enabled(False)
            # Compiled code ignores hooks that are registered after its compilation.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(torch.no_grad())
            yield

    def _scale(
        self, name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Apply the masks to the input of a layer that returns its input in eval mode."""
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
        y: Tensor = x.reshape(passes, self.size, *x.shape[1:]) * factor  # keeps x's memory format
        return y.add_(shift).flatten(0, 1).to(x.dtype)

    def _draw(self, name: str, layer: nn.Module, index: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the shift and factor that ``layer`` applies. Only alpha dropout has a shift."""
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
        """Run attention's own forward ``run`` with one mask for all samples."""
        batch = 0 if layer.batch_first else 1
        self._check_size(name, query, batch)
        if attn_mask is not None and attn_mask.dim() == 3:  # one mask for each sample and head
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
        """Run the layer's own forward ``run`` with one mask of the weights for each pass."""
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
        """Seed the generator and set ``layer`` to train mode. Restore both afterwards."""
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
                f"{name or 'the model'} drops from a tensor of shape {tuple(x.shape)}, but expected"
                f" the batch, of size {expected}, in dimension {dim}, for a mask that all samples"
                " share: put the samples there (batch_first=True) or set the layer's rate to 0"
            )


def _set_forward(layer: nn.Module, forward: Callable[..., Any] | None) -> None:
    """Set the ``forward`` of one layer; ``None`` restores the ``forward`` of its class."""
    if forward is None:
        del vars(layer)["forward"]
    else:
        vars(layer)["forward"] = forward


def _dropping(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of ``model`` that drop, by name."""
    timm = sys.modules.get("timm.layers")  # loaded if the model has a layer of timm
    rates = _RATES | {getattr(timm, cls): rate for cls, rate in _TIMM_RATES.items() if timm}
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase) and module.dropout and module.num_layers > 1:
            raise RuntimeError(
                f"{name or 'the model'} ({type(module).__name__}) drops between its own layers,"
                " where samples can't share a mask: put nn.Dropout between layers of num_layers=1,"
                " or set its `dropout` to 0 to leave it off"
            )
        if any(isinstance(module, kind) and getattr(module, rate) for kind, rate in rates.items()):
            layers[name] = module
    if not layers:
        raise RuntimeError(
            f"no layer of {type(model).__name__} drops, so all passes would be equal: expected"
            f" {', '.join(kind.__name__.lstrip('_') for kind in rates)} or a subclass, with a rate"
            " above 0. F.dropout in a forward can't be found: make it an nn.Dropout"
        )
    return layers
