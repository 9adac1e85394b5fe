"""Dropout that stays on in eval mode."""

import ast
import re
from collections.abc import Iterator
from typing import Literal

from torch.nn.modules.dropout import _DropoutNd

from lightning_practices.advisor._kinds import DROPOUTS
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Call

_ATTENTION = "scaled_dot_product_attention"
_ON = DROPOUTS - {"alpha_dropout", "feature_alpha_dropout"}  # those are off unless asked for


@rule(
    "LP110", "warning",
    practice="Dropout is off in eval mode",
    measures="functions that drop in the validation step, in modules in eval mode",
    healthy="none; training=True on purpose, as for Monte Carlo dropout",
    source="torch.nn.functional.dropout has training=True by default, and"
    " scaled_dot_product_attention always drops; questions about validation results that differ",
)  # fmt: skip
def dropout_in_validation(seen: Observation) -> Iterator[Evidence]:
    for call in _dropping(seen):
        form = _form(call)
        if form == "explicit":
            continue
        if call.name == _ATTENTION:
            remedy = "dropout_p=p if self.training else 0.0"
        elif form == "module":
            remedy = "self.dropout = nn.Dropout(p) in __init__"
        else:
            remedy = f"functional.{call.name}(x, p, training=self.training)"
        yield Evidence(
            f"{call} drops with p={_rate(call):g} in eval mode too: validation and predictions are"
            " random",
            remedy,
            (call.module,) if call.module else (),
            {"p": _rate(call)},
        )


@rule(
    "LP120", "hint",
    practice="Dropout is off in eval mode",
    measures="functions that drop in the validation step with training=True",
    healthy="none, but for Monte Carlo dropout",
    source="Gal and Ghahramani, 2016, Dropout as a Bayesian approximation",
)  # fmt: skip
def dropout_in_validation_on_purpose(seen: Observation) -> Iterator[Evidence]:
    for call in _dropping(seen):
        if _form(call) == "explicit":
            yield Evidence(
                f"{call} drops with p={_rate(call):g} in eval mode too, as its argument says",
                "training=self.training, unless predictions are averaged over several passes",
                (call.module,) if call.module else (),
                {"p": _rate(call)},
            )


def _dropping(seen: Observation) -> Iterator[Call]:
    """Yield the calls that drop in eval mode, one of each line.

    Without a validation step, these are the calls of the training step that don't say whether they
    train.
    """
    step = seen.validation_step
    lines = set()
    for call in (step or seen.step).calls:
        if call.name not in _ON and call.name != _ATTENTION:
            continue
        if isinstance(seen.modules.get(call.module), _DropoutNd) or not _drops(call):
            continue  # a module in training mode is so on purpose
        is_on = _form(call) == "omitted" if step is None else not step.modes.get(call.module, True)
        if is_on and call.name == _ATTENTION and step is None:
            continue
        if is_on and (call.module, call.line) not in lines:
            lines.add((call.module, call.line))
            yield call


def _drops(call: Call) -> bool:
    is_training = call.name == _ATTENTION or call.get(2, "training", call.kwargs.get("train", True))
    return bool(is_training) and _rate(call) > 0


def _rate(call: Call) -> float:
    if call.name == _ATTENTION:
        return float(call.get(4, "dropout_p", 0.0))
    return float(call.get(1, "p", 0.5))


def _form(call: Call) -> Literal["omitted", "explicit", "module"]:
    """Whether the source leaves out ``training``, gives it, or calls an ``nn.Dropout``."""
    if call.name == _ATTENTION:
        return "omitted"
    text = call.text
    found = re.search(rf"\b{call.name}\s*\(", text)
    if found is None:
        return "module" if text else "explicit"
    try:
        tree = ast.parse(f"call({_within(text[found.end() :])})", mode="eval").body
    except SyntaxError:
        return "explicit"
    assert isinstance(tree, ast.Call)
    names = {keyword.arg for keyword in tree.keywords}
    is_given = len(tree.args) >= 3 or bool(names & {"training", "train", None})
    return "explicit" if is_given else "omitted"


def _within(text: str) -> str:
    """Return the text up to the parenthesis that closes the one before it."""
    deep = 1
    for place, letter in enumerate(text):
        deep += (letter == "(") - (letter == ")")
        if deep == 0:
            return text[:place]
    return text
