"""Names of parameters and modules as their author wrote them."""

import re

_WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def plain_name(name: str) -> str:
    """Return a name without what torch's wrappers (compile, FSDP1, checkpointing) put into it."""
    return _WRAPPERS.sub("", name)
