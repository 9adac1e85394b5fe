"""The call that makes an object, as text."""

import inspect


def as_call(made: object) -> str:
    """Return the call that makes an object whose attributes have the names of its arguments.

    Arguments that equal their defaults are left out, except for the first.
    """
    first, *others = list(inspect.signature(type(made)).parameters.values())
    given = getattr(made, first.name)
    arguments = [getattr(given, "__qualname__", repr(given))]
    for parameter in others:
        value = getattr(made, parameter.name)
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments += [f"{key}={option!r}" for key, option in value.items()]
        elif value != parameter.default:
            arguments.append(f"{parameter.name}={value!r}")
    return f"{type(made).__name__}({', '.join(arguments)})"
