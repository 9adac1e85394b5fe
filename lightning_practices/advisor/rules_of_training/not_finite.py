"""A loss or gradient that isn't finite, and where that began."""

from collections.abc import Iterator

from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._run import NotFinite, Run

_HARMLESS = "a smaller learning rate, or clip gradients by GradientClipping(1.0)"
# Functions whose value or derivative is infinite somewhere, and a line that avoids it.
_REMEDIES = {
    "log": "torch.log(x.clamp_min(1e-6)), or log_softmax and logsigmoid in place of log",
    "sqrt": "torch.sqrt(x + 1e-12): the derivative of sqrt is infinite at 0",
    "div": "divide by x.clamp_min(1e-6)",
    "reciprocal": "divide by x.clamp_min(1e-6)",
    "exp": "bound the exponent, by x.clamp(max=20), or use softplus",
    "pow": "x.clamp_min(1e-6) before a power that is negative or fractional",
    "linalg_vector_norm": "add 1e-12 below the root: the derivative of a norm is nan at 0",
}


@rule(
    "LP801", "error",
    practice="Losses, gradients and weights are finite",
    measures="the first loss, and what the graph of its gradient holds",
    healthy="finite",
    source="Wardat et al., 2021, DeepLocalize: fault localization for deep neural networks",
)  # fmt: skip
def not_finite(run: Run) -> Iterator[Evidence]:
    found = run.not_finite
    if found is not None:
        message, remedy = _said(found)
        yield Evidence(message, remedy, found.modules)


def _said(found: NotFinite) -> tuple[str, str]:
    where = f" after {found.modules[-1]}" if found.modules else ""
    if found.what == "batch":
        return (
            f"the batch holds nan or infinite numbers in {found.name}: so does the loss",
            "mend or drop such samples in the dataset: torch.nan_to_num(x)",
        )
    if found.what in ("parameter", "gradient"):
        begun = "the step before made" if found.what == "parameter" else "the gradients of"
        end = "" if found.what == "parameter" else " are"
        return (
            f"{begun} {found.name} and what is before it{end} nan or infinite, while the loss was"
            " finite",
            f"look for a square root or norm at 0 or an overflow{where}; {_HARMLESS}",
        )
    if found.what == "function":
        return (
            f"{found.name}{where} got or gave nan or infinite numbers before any other function",
            _REMEDIES.get(found.name, f"bound the input of {found.name}{where}; {_HARMLESS}"),
        )
    return (
        "the loss is nan or infinite; the place isn't known, as weights were not finite when it was"
        " seen, or the graph is compiled",
        "TrainingAdvisor(every_n_steps=1) looks at each step, and names the place",
    )
