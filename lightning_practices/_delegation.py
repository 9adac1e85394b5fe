"""Objects that stand for another one, such as a loader that adds something to the user's."""

from typing import Any, ClassVar


class Delegating:
    """Base of an object that has the attributes and the length of another one, beside its own.

    A subclass names the attribute that holds the other object, as in ``_stands_for = "loader"``.
    """

    _stands_for: ClassVar[str]

    def __getattr__(self, name: str) -> Any:
        if name == self._stands_for:  # in a copy that is being made
            raise AttributeError(name)
        return getattr(getattr(self, self._stands_for), name)

    def __len__(self) -> int:
        return len(getattr(self, self._stands_for))
