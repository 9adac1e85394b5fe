"""Variational autoencoders: the sign of the divergence, and how codes are sampled."""

from collections.abc import Iterator

from lightning_practices.advisor._divergences import base_of, divergences_of, stripped
from lightning_practices.advisor._observation import Observation
from lightning_practices.advisor._outputs import layer_of
from lightning_practices.advisor._rule import Evidence, rule
from lightning_practices.advisor._trace import Call, Value

_NORMAL = frozenset({"randn", "randn_like", "normal"})
_UNIFORM = frozenset({"rand", "rand_like", "uniform"})
_SHOULD = {"variance": 1, "log variance": -1, "mean": 1}


@rule(
    "LP241", "error",
    practice="The Kullback-Leibler term of a variational autoencoder is made smaller",
    measures="the signs with which exp(log variance), log variance and the squared mean enter the"
    " loss",
    healthy="1, -1 and 1: KL(N(mean, variance), N(0, 1)) = (mean² + variance - log variance - 1)/2",
    source="Kingma and Welling, 2014, arXiv:1312.6114, appendix B; questions on forums about a KL"
    " loss that is negative",
)  # fmt: skip
def divergence_sign(seen: Observation) -> Iterator[Evidence]:
    groups = [group for one in seen.optimizers for group in one.param_groups]
    if any(group.get("maximize", False) for group in groups):
        return
    for found in divergences_of(seen.step):
        wrong = [name for name, sign in found.signs.items() if sign == -_SHOULD[name]]
        if not wrong:
            continue
        signs = {found.signs[name] * _SHOULD[name] for name in found.signs}
        whole = signs == {-1}
        values = [found.variance, found.mean]
        yield Evidence(
            f"the divergence from the prior, {found.call}, "
            + (
                "enters the loss with a minus: the fit makes it larger without an end"
                if whole
                else f"has the wrong sign for the {' and the '.join(wrong)}: the fit makes it"
                " smaller where it should grow, or the reverse"
            ),
            "loss = reconstruction + kl, with kl = 0.5 * (mean**2 + log_var.exp() - log_var"
            " - 1).sum(1).mean()",
            tuple(dict.fromkeys(name for x in values if (name := layer_of(x)))),
        )
        return


@rule(
    "LP245", "error",
    practice="A code is sampled by the standard deviation that its divergence has",
    measures="the factor of the noise, where the divergence takes its logarithm for that of the"
    " variance, and the distribution of the noise",
    healthy="exp(log variance / 2), and normal noise",
    source="Kingma and Welling, 2014, arXiv:1312.6114, section 2.4",
)  # fmt: skip
def code_by_its_variance(seen: Observation) -> Iterator[Evidence]:
    bases = {
        id(base_of(found.variance))
        for found in divergences_of(seen.step)
        if [call.name for call in stripped(found.variance)] == ["exp"]
    }
    for call in seen.step.calls:
        for factor, noise in _noise(call):
            if id(base_of(factor)) not in bases:
                continue
            is_uniform = noise.name in _UNIFORM
            is_variance = [one.name for one in stripped(factor)] == ["exp"]
            if is_uniform or is_variance:
                yield Evidence(
                    f"{call} multiplies noise by "
                    + (
                        "exp(log_var), the variance, where the divergence has log_var for the"
                        " logarithm of the variance"
                        if is_variance
                        else f"the standard deviation, but the noise of {noise} is uniform, between"
                        " 0 and 1"
                    ),
                    "z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)",
                    tuple(filter(None, [layer_of(factor)])),
                )
                return


def _noise(call: Call) -> Iterator[tuple[Value, Call]]:
    """Yield the value that a call multiplies by noise, and the call that drew the noise."""
    if call.name != "mul" or len(call.inputs) != 2:
        return
    for value, other in (call.inputs, call.inputs[::-1]):
        drawn = other.maker()
        is_drawn = drawn is not None and drawn.name in _NORMAL | _UNIFORM
        if is_drawn and drawn is not None and value.requires_grad:
            yield value, drawn
