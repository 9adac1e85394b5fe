"""Links from references to names of other projects, without a network.

``sphinx.ext.intersphinx`` would fetch the inventories of these projects in each build. Here a name
is imported instead, so a name that doesn't exist is still a warning. The address follows from the
name, by the patterns that each project documents its names under.
"""

import sys
from importlib import import_module
from inspect import isclass, isroutine
from types import ModuleType
from typing import Any

from docutils import nodes

TORCH = "https://docs.pytorch.org/docs/stable"
VISION = "https://docs.pytorch.org/vision/stable"
METRICS = "https://lightning.ai/docs/torchmetrics/stable/all-metrics.html"
LIGHTNING = "https://lightning.ai/docs/pytorch/stable"
RICH = "https://rich.readthedocs.io/en/stable/reference"
PYTHON = "https://docs.python.org/3/library/{module}.html"

# The start of a public name, and the page of such names; the longest start that fits is used.
# ``{name}`` is the name of the class or function, and ``{module}`` the module of it. Modules of
# Python itself have a page each.
PAGES = {
    "torch": TORCH + "/generated/{name}.html",
    "torch.Tensor": TORCH + "/tensors.html",
    "torch.amp": TORCH + "/amp.html",
    "torch.device": TORCH + "/tensor_attributes.html",
    "torch.dtype": TORCH + "/tensor_attributes.html",
    "torch.distributed": TORCH + "/{module}.html",
    "torch.optim.Optimizer": TORCH + "/optim.html",
    "torch.optim.swa_utils": TORCH + "/optim.html",
    "torch.utils.data": TORCH + "/data.html",
    "torchvision": VISION + "/generated/{name}.html",
    "lightning.pytorch": LIGHTNING + "/api/{name}.html",
    "torchmetrics": METRICS,
    "rich.console": RICH + "/console.html",
}
# Names under which a project documents what it also offers, or keeps, elsewhere.
DOCUMENTED = {
    "lightning.pytorch.Callback": "lightning.pytorch.callbacks.Callback",
    "lightning.pytorch.LightningModule": "lightning.pytorch.core.LightningModule",
    "lightning.pytorch.LightningDataModule": "lightning.pytorch.core.LightningDataModule",
    "lightning.pytorch.Trainer": "lightning.pytorch.trainer.trainer.Trainer",
    "torch.GradScaler": "torch.amp.GradScaler",
    "torch.nn.Parameter": "torch.nn.parameter.Parameter",
}
# Modules that have a page of their own.
MODULES = {
    "torch.nn.functional": TORCH + "/nn.functional.html",
    "torch.optim.swa_utils": TORCH + "/optim.html",
}
# Names that are there, but on no page: they stay text.
UNDOCUMENTED = {
    "lightning.fabric.utilities.exceptions.MisconfigurationException",
    "torchvision.models.WeightsEnum",
    "torchvision.models.vision_transformer",
    "torchvision.models.vision_transformer.EncoderBlock",
}
# Names that docstrings give without their module, in the lists of errors.
WITHOUT_MODULE = {
    "MisconfigurationException": "lightning.fabric.utilities.exceptions.MisconfigurationException",
    "Ellipsis": "builtins.Ellipsis",
}


def found(path: str) -> tuple[list[str], list[Any]] | None:
    """Return the parts of a name and the object at each; None if there is no such name."""
    parts = path.split(".")
    objects: list[Any] = []
    for end, part in enumerate(parts, start=1):
        try:
            if not objects:
                objects.append(import_module(part))
            elif hasattr(objects[-1], part):
                objects.append(getattr(objects[-1], part))
            else:
                objects.append(import_module(".".join(parts[:end])))
        except ImportError:
            return None
    return parts, objects


def public(path: str) -> tuple[str, str] | None:
    """Return the module that a user imports an object from, and its name there.

    The first is the shortest module of the object's own path that has it.
    """
    if (both := found(path)) is None:
        return None
    parts, objects = both
    modules = sum(isinstance(one, ModuleType) for one in objects)
    if modules == len(parts):
        return path, ""
    thing, inside = objects[modules], ".".join(parts[modules + 1 :])
    name, homes = parts[modules], [".".join(parts[:end]) for end in range(1, modules + 1)]
    if isclass(thing) or isroutine(thing):
        own = (getattr(thing, "__module__", None) or homes[-1]).split(".")
        homes += [".".join(own[:end]) for end in range(1, len(own) + 1)]
    for home in sorted(homes, key=len):
        # Names of Lightning are documented below lightning.pytorch.
        if home != "lightning" and getattr(import_module(home), name, None) is thing:
            return home, f"{name}.{inside}" if inside else name
    return None


def address(path: str) -> str | None:
    """Return the address of the documentation of a name.

    It is empty for a name that isn't documented, and None for a name that doesn't exist.
    """
    path = WITHOUT_MODULE.get(path, path)
    if (both := public(path)) is None:
        return None
    module, name = both
    if f"{module}.{name}".rstrip(".") in UNDOCUMENTED:
        return ""
    if not name:
        return MODULES.get(module)
    first, _, inside = name.partition(".")
    whole = DOCUMENTED.get(f"{module}.{first}", f"{module}.{first}")
    if (page := page_of(module, whole)) is None:
        return None
    return f"{page}#{whole}.{inside}" if inside else f"{page}#{whole}"


def page_of(module: str, name: str) -> str | None:
    """Return the page that documents a name of a module."""
    if module == "builtins":
        return PYTHON.format(module="constants")
    if module.partition(".")[0] in sys.stdlib_module_names:
        return PYTHON.format(module=module)
    starts = [start for start in PAGES if f"{name}.".startswith(f"{start}.")]
    if not starts or any(part.startswith("_") for part in name.split(".")):
        return None
    return PAGES[max(starts, key=len)].format(name=name, module=module)


def link(app: Any, env: Any, node: Any, content: nodes.Node) -> nodes.Node | None:
    """Return a link for a reference that no page here is the target of."""
    target = str(node.get("reftarget", ""))
    if node.get("refdomain") != "py" or (to := address(target)) is None:
        return None
    if not to:
        return content
    return nodes.reference("", "", content, internal=False, refuri=to, reftitle=target)


def setup(app: Any) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("missing-reference", link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
