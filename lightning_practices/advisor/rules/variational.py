"""Variational autoencoders: the sign of the divergence, and how codes are sampled."""

from collections.abc import Iterator

from lightning_practices.advisor._divergences import base_of, divergences_of, stripped
from lightning_practices.advisor._gradient_paths import Paths
from lightning_practices.advisor._kinds import PASSED
from lightning_practices.advisor._observation import Observation, Step
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


@rule(
    "LP249", "error",
    practice="The reconstruction trains the encoder through a sampled code",
    measures="whether a code that is drawn from the mean and the variance of a divergence, and goes"
    " into a layer, has a gradient",
    healthy="it does: mean + std * noise, or rsample()",
    source="Kingma and Welling, 2014, arXiv:1312.6114, section 2.4: the reparametrisation",
)  # fmt: skip
def code_without_gradient(seen: Observation) -> Iterator[Evidence]:
    step = seen.step
    encoders = {
        layer_of(x) for found in divergences_of(step) for x in (found.variance, found.mean)
    } - {""}
    if not encoders:
        return
    drawn = [one for one in _drawn(step) if encoders & set(map(layer_of, one[2]))]
    if any(code.requires_grad and call.name != "normal" for call, code, _ in drawn):
        return
    for call, code, _ in drawn:  # torch.normal has a gradient, which is 0
        if _is_decoded(step, code):
            yield Evidence(
                f"{call} draws a code from the encoder's output without a gradient: the"
                " reconstruction trains the decoder alone, and the encoder gets the gradient of its"
                " divergence from the prior",
                "z = mean + std * torch.randn_like(std), with no detach(), or"
                " torch.distributions.Normal(mean, std).rsample()",
                tuple(sorted(encoders)),
            )
            return


def _drawn(step: Step) -> Iterator[tuple[Call, Value, list[Value]]]:
    """Yield the calls that draw codes, each with the code and the values it is drawn from."""
    for call in step.calls:
        sources = [x for x in call.inputs if x.is_data and x.depth]
        if call.name == "normal" and sources:
            yield call, call.output, sources
        for value, _ in _noise(call, even_if_detached=True):
            sums = [one for one in step.users(call.output) if one.name == "add"]
            for one in sums[:1] or [call]:
                yield one, one.output, [value]


def _is_decoded(step: Step, code: Value) -> bool:
    """Return whether a code reaches the loss through a layer, and through nothing else.

    The logarithm of its probability, by which a score function trains the encoder, is other.
    """
    paths = Paths(step)
    views = [call for call in step.users(code) if call.name in PASSED]
    if any(_is_decoded(step, view.output) for view in views if view.outputs):
        return True
    first = [call for call in step.users(code) if call not in views]
    is_scored = any(
        x.requires_grad and x.parameter is None and x.depth
        for call in first
        for x in call.inputs
        if x is not code and not call.is_layer
    )
    return not is_scored and any(
        call.is_layer and id(call) in paths.reach for call in paths.after([code])
    )


def _noise(call: Call, *, even_if_detached: bool = False) -> Iterator[tuple[Value, Call]]:
    """Yield the value that a call multiplies by noise, and the call that drew the noise."""
    if call.name != "mul" or len(call.inputs) != 2:
        return
    for value, other in (call.inputs, call.inputs[::-1]):
        drawn = other.maker()
        is_drawn = drawn is not None and drawn.name in _NORMAL | _UNIFORM
        is_output = value.requires_grad or (even_if_detached and value.is_data and value.depth)
        if is_drawn and drawn is not None and is_output:
            yield value, drawn
