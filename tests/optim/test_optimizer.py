"""Optimizers by name."""

from functools import partial
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop

from lightning_practices import optim
from lightning_practices.optim import OptimizerName, make_optimizer, parameter_groups

CLASSES: dict[Any, tuple[Any, dict[str, Any]]] = {
    "sgd": (SGD, {}),
    "momentum": (SGD, {"momentum": 0.9}),
    "nesterov": (SGD, {"momentum": 0.9, "nesterov": True}),
    "adagrad": (Adagrad, {}),
    "rmsprop": (RMSprop, {}),
    "adam": (Adam, {}),
    "adamw": (AdamW, {}),
}
FORM = ("fused", "foreach")


def parameters(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(3, 2), (4,), ()]
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def trained(optimizer: Optimizer) -> list[Tensor]:
    tensors = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(4):
        for p in tensors:
            p.grad = (p.detach() - step) ** 2
        optimizer.step()
    return [p.detach() for p in tensors]


def without_form(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in FORM}


def test_all_names_are_tried() -> None:
    assert CLASSES.keys() == set(get_args(OptimizerName))


@pytest.mark.parametrize("name", CLASSES)
def test_all_but_its_form_is_torchs(name: Any) -> None:
    kind, options = CLASSES[name]
    made = make_optimizer(name, parameters())
    assert type(made) is kind
    assert without_form(made.defaults) == without_form(kind(parameters(), **options).defaults)
    assert made.defaults["weight_decay"] == (0.01 if name == "adamw" else 0)
    for mine, right in zip(trained(made), trained(kind(parameters(), **options)), strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", CLASSES)
def test_what_is_given_counts(name: Any) -> None:
    kind, options = CLASSES[name]
    made = make_optimizer(name, parameters(), 0.02, weight_decay=0.3)
    right = kind(parameters(), **{**options, "lr": 0.02, "weight_decay": 0.3})
    assert without_form(made.defaults) == without_form(right.defaults)
    for mine, theirs in zip(trained(made), trained(right), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)


def test_options_of_torch() -> None:
    assert make_optimizer("momentum", parameters(), momentum=0.5).defaults["momentum"] == 0.5
    assert make_optimizer("adam", parameters(), betas=(0.8, 0.9)).defaults["betas"] == (0.8, 0.9)
    with pytest.raises(TypeError, match="unexpected keyword argument 'betas'"):
        make_optimizer("sgd", parameters(), betas=(0.8, 0.9))


# Which form.


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_it_is_fused_where_torch_has_that(name: Any, dtype: torch.dtype) -> None:
    made = make_optimizer(name, parameters(dtype))
    assert bool(made.defaults.get("fused")) == (name != "rmsprop")
    assert not made.defaults["foreach"]
    trained(made)  # torch raises in the step where it has no such form


def test_other_parameters_have_torchs_choice() -> None:
    mixed: list[Any] = [
        [nn.Parameter(torch.ones(2, dtype=torch.complex64)), *parameters()],
        [nn.Parameter(torch.ones(2, device="meta"))],
        [nn.Parameter(torch.ones(2, device="meta")), *parameters()],
    ]
    for params in mixed:
        made = make_optimizer("adam", params)
        assert made.defaults["fused"] is made.defaults["foreach"] is None


def test_the_form_can_be_given() -> None:
    for form in ({"fused": None}, {"foreach": True}, {"fused": False}, {"foreach": False}):
        made = make_optimizer("adam", parameters(), **form)
        assert {name: made.defaults[name] for name in FORM} == {
            **dict.fromkeys(FORM), **form
        }  # fmt: skip


def test_sparse_gradients_need_torchs_choice() -> None:
    for fused, fails in (({}, True), ({"fused": None}, False)):
        words = nn.Embedding(4, 2, sparse=True)
        made = make_optimizer("sgd", words.parameters(), **fused)
        words(torch.tensor([1])).sum().backward()
        if fails:
            with pytest.raises(RuntimeError, match="does not support sparse gradients"):
                made.step()
        else:
            made.step()


@pytest.mark.gpu
@pytest.mark.parametrize("name", CLASSES)
def test_on_the_gpu(name: Any) -> None:
    made = make_optimizer(name, [nn.Parameter(p.detach().cuda()) for p in parameters()])
    assert bool(made.defaults.get("fused")) == (name not in ("rmsprop", "adagrad"))
    right = make_optimizer(name, parameters())
    for mine, theirs in zip(trained(made), trained(right), strict=True):
        torch.testing.assert_close(mine.cpu(), theirs)


# What it takes.


def test_groups_and_names_and_what_can_be_read_once() -> None:
    model = nn.Linear(2, 2)
    groups = parameter_groups(model, 0.1, lr=0.5)
    made = make_optimizer("adamw", iter(groups))
    assert [group["weight_decay"] for group in made.param_groups] == [0.1, 0.0]
    assert [group["lr"] for group in made.param_groups] == [0.5, 0.5]
    once = make_optimizer("adamw", [{"params": iter(model.parameters()), "lr": 0.5}])
    assert once.param_groups[0]["params"] == [*model.parameters()]
    named = make_optimizer("adamw", model.named_parameters())
    assert named.param_groups[0]["param_names"] == ["weight", "bias"]
    assert make_optimizer("sgd", [{"params": model.weight}]).defaults["fused"]
    for given in (made, once, named):
        assert given.defaults["fused"]


def test_your_own() -> None:
    model = nn.Linear(2, 2)
    made = make_optimizer(partial(NAdam, weight_decay=0.2), parameter_groups(model), lr=0.1)
    assert type(made) is NAdam
    assert [group["weight_decay"] for group in made.param_groups] == [0.2, 0.0]
    assert made.defaults["lr"] == 0.1
    seen: list[Any] = []

    def factory(params: Any) -> Optimizer:
        seen.append(params)
        return SGD(params)

    assert type(make_optimizer(factory, model.parameters())) is SGD
    assert seen == [[*model.parameters()]]


def test_the_object_in_any_loop() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    recipe = optim.Optimizer("adam", 0.5, 0.25, no_decay=("bias",), layer_decay=0.5, eps=1.0)
    for part in (model, nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))):
        made = recipe(part, betas=(0.5, 0.5), eps=2.0)
        groups = parameter_groups(part, 0.25, no_decay=("bias",), layer_decay=0.5, lr=0.5)
        expected = make_optimizer("adam", groups, 0.5, betas=(0.5, 0.5), eps=1.0)
        assert type(made) is Adam
        assert made.param_groups == expected.param_groups
        assert made.defaults == expected.defaults  # the constructor's eps comes first


def test_what_is_refused() -> None:
    wrong: list[Any] = ["Adam", None]
    for name in wrong:
        message = rf"optimizer has to be 'sgd', .*'adamw' or a class or function .* got {name!r}"
        with pytest.raises((ValueError, TypeError), match=message):
            make_optimizer(name, parameters())
    with pytest.raises(ValueError, match=r"as in Optimizer\(torch\.optim\.Adam\).* mean 'adam'\?"):
        optim.Optimizer("Adam")  # type: ignore[arg-type]
    lr: Any = "1e-3"
    with pytest.raises(TypeError, match="lr has to be a finite number, at least 0, but got '1e-3'"):
        optim.Optimizer("adam", lr)
    with pytest.raises(TypeError, match=r"has to make an Optimizer, but made \d"):
        make_optimizer(len, parameters())  # type: ignore[arg-type]
    model = nn.Linear(2, 2)
    for decay, refused in ((0.1, True), (0.0, False)):
        groups = parameter_groups(model, decay)
        single = [{**groups[0], "params": [p for group in groups for p in group["params"]]}]
        if refused:
            message = "LBFGS takes no weight_decay, but a group has 0.1: give weight_decay=0, or"
            with pytest.raises(ValueError, match=message):
                make_optimizer(LBFGS, single)
        else:
            make_optimizer(LBFGS, single)


def test_shown_in_one_line() -> None:
    assert repr(optim.Optimizer()) == "Optimizer('adamw')"
    given = optim.Optimizer("adam", 0.5, no_decay=["bias"], betas=(0.5, 0.9))
    assert repr(given) == "Optimizer('adam', lr=0.5, no_decay=('bias',), betas=(0.5, 0.9))"
    assert repr(optim.Optimizer(NAdam, weight_decay=0)) == "Optimizer(NAdam, weight_decay=0.0)"


def custom(params: Any, rate: float = 0.1) -> torch.optim.Optimizer:
    return SGD(params, rate)


def open_ended(params: Any, **options: Any) -> torch.optim.Optimizer:
    return SGD(params, **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adamw", {"beta": (0.5, 0.9)}, r"optimizer 'adamw' takes no option 'beta': .* 'betas'\?"),
        ("sgd", {"betas": (0.5, 0.9)}, "optimizer 'sgd' takes no option 'betas': it takes lr, mo"),
        ("momentum", {"momentun": 0.5}, r"takes no option 'momentun': did you mean 'momentum'\?"),
        ("rmsprop", {"params": []}, "takes no option 'params'"),
        (NAdam, {"decay": 0.5}, "optimizer NAdam takes no option 'decay'"),
        (custom, {"rates": 0.5}, r"optimizer custom takes no option 'rates': .* 'rate'\?"),
        (partial(SGD, momentum=0.5), {"momentun": 0.5}, r"takes no option 'momentun': .*um'\?"),
    ],
)
def test_a_misspelt_option_is_refused_at_once(name: Any, options: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        optim.Optimizer(name, **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (open_ended, {"lr_": 1}),
        (partial(SGD, momentum=0.5), {"momentum": 0.25, "nesterov": True}),
        (custom, {"rate": 0.5}),
        ("rmsprop", {"alpha": 0.5, "centered": True}),
    ],
)
def test_options_that_may_be_right_are_taken(name: Any, options: Any) -> None:
    assert optim.Optimizer(name, **options).options == options


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_no_fused_form_may_be_asked_of_any_optimizer(name: Any) -> None:
    made = make_optimizer(name, parameters(), fused=None)
    assert not made.defaults.get("fused")
    again = optim.Optimizer(name, fused=None)(nn.Linear(2, 2))
    assert not again.defaults.get("fused")
