"""Shows types by the names that users import, and aliases with their own docstrings."""

import inspect
import pkgutil
import sys
from functools import cache
from importlib import import_module
from typing import Any, Literal, get_args, get_origin

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.pycode import ModuleAnalyzer
from sphinx.transforms.post_transforms import SphinxPostTransform

import lightning_practices

PACKAGES = (
    "lightning_kernels",
    *(
        f"lightning_practices.{room.name}"
        for room in pkgutil.iter_modules(lightning_practices.__path__)
        if room.ispkg and not room.name.startswith("_")
    ),
)
OURS = ("lightning_kernels", "lightning_practices")


@cache
def public_names() -> dict[str, Any]:
    """Return the object of each public name, by its path."""
    modules = [import_module(package) for package in PACKAGES]
    return {f"{one.__name__}.{name}": getattr(one, name) for one in modules for name in one.__all__}


def type_hint(annotation: Any, config: Any = None) -> str | None:
    """Return the alias of a ``Literal`` as a link, or its values; None for other types.

    In a signature, where there is no ``config``, types stay as they are.
    """
    if config is None or get_origin(annotation) is not Literal:
        return None
    for path, thing in public_names().items():
        if thing == annotation:
            return f":py:data:`~{path}`"
    return " | ".join(f"``{value!r}``" for value in get_args(annotation))


def alias_docstring(
    app: Any, what: str, path: str, thing: Any, options: Any, lines: list[str]
) -> None:
    """Give an alias the docstring below its assignment, which is in a private file."""
    if what not in ("data", "attribute", "type") or path not in public_names():
        return
    package, _, name = path.rpartition(".")
    for module in [one for one in sys.modules if one.startswith(f"{package}.")]:
        documented = ModuleAnalyzer.for_module(module).find_attr_docs()
        if ("", name) in documented:
            lines[:] = documented["", name]
            return


def is_left_out(
    app: Any, what: str, name: str, thing: Any, skip: bool, options: Any
) -> bool | None:
    """Leave out what torch, Lightning and Python document themselves.

    These are overrides whose docstring is that of a class outside this project, and the fields of
    named tuples, which the class docstring describes.
    """
    if type(thing).__name__ == "_tuplegetter":
        return True
    function = thing.fget if isinstance(thing, property) else thing
    if name.startswith("_") or not inspect.isfunction(function) or function.__doc__:
        return None
    function = inspect.unwrap(function)
    cls: Any = sys.modules[function.__module__]
    for part in function.__qualname__.split(".")[:-1]:
        cls = getattr(cls, part)
    bases = [base for base in inspect.getmro(cls) if name in vars(base)]
    documented = [base for base in bases if getattr(vars(base)[name], "__doc__", None)]
    return not documented or documented[0].__module__.partition(".")[0] not in OURS


LINKED = (nodes.reference, pending_xref, nodes.title)  # these stay as they are


class LinkNames(SphinxPostTransform):
    """Links code in the text that is a public name, such as ``callbacks.EarlyStopping``.

    A page needs no role then, and reads well as Markdown too. The name is given as from
    ``lightning_practices``, or whole; mixins, whose names nothing else has, also alone.
    """

    default_priority = 5  # before references are resolved

    def run(self, **kwargs: Any) -> None:
        """Make references of the names."""
        names = {path: path for path in public_names()}
        names |= {path.removeprefix("lightning_practices."): path for path in names}
        names |= {path.rpartition(".")[2]: path for path in names if ".mixins." in path}
        for node in list(self.document.findall(nodes.literal)):
            target = names.get(node.astext().partition("(")[0])
            if target is not None and not isinstance(node.parent, LINKED):
                reference = pending_xref(
                    "", node.deepcopy(), refdomain="py", reftype="obj", reftarget=target,
                    refdoc=self.env.docname,
                )  # fmt: skip
                node.replace_self(reference)


def setup(app: Any) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.add_post_transform(LinkNames)
    app.connect("autodoc-skip-member", is_left_out)
    app.connect("autodoc-process-docstring", alias_docstring, priority=900)  # after napoleon
    return {"parallel_read_safe": True, "parallel_write_safe": True}
