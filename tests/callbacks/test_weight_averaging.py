"""Averaged weights in real fits: what is averaged when, and who has it."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_practices.callbacks import RecalibrateBatchNorm, WeightAveraging
from lightning_practices.surgery import recalibrate_batch_norm
from tests.callbacks.averaging import BATCHES, VALIDATION, Loader, Net, alike, averaged, fit
from tests.callbacks.scripted import At, fail, interrupt, same, state_of, stop, trainer_of


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list in which this test's messages will be."""
    said: list[str] = []
    where = "lightning_practices.callbacks._averaging.weight_averaging.rank_zero_info"
    monkeypatch.setattr(where, said.append)
    return said


# The arithmetic.


@pytest.mark.parametrize(
    ("decay", "warmup"), [(0.0, False), (0.7, False), (0.7, True), (0.999, True)]
)
def test_exponential_averages_are_those_of_torch(
    decay: float, warmup: bool, lines: list[str]
) -> None:
    module, plain = Net(), Net()
    averaging = WeightAveraging(decay=decay, decay_warmup=warmup)
    fit(module, averaging)
    fit(plain)
    assert list(module.seen) == [4, 8, 12, 16]
    for step, state in module.seen.items():
        expected = averaged([plain.trained[s] for s in range(1, step + 1)], decay, warmup=warmup)
        assert alike(state, expected)
        assert torch.equal(state["net.1.num_batches_tracked"], torch.tensor(step))
    assert same(state_of(module), module.seen[16])
    assert averaging.averaged == 16
    assert lines == ["WeightAveraging: the module has the average of 16 weights"]
    assert all(same(module.trained[step], plain.trained[step]) for step in plain.trained)


def test_equal_averages_are_those_of_torch_and_their_statistics_are_recomputed() -> None:
    module, plain = Net(), Net()
    averaging = WeightAveraging("swa", start=0)
    trainer = fit(module, averaging)
    fit(plain)
    for step, state in module.seen.items():
        assert alike(state, averaged([plain.trained[s] for s in range(4, step + 1, 4)]))
    assert averaging.averaged == 4
    expected = Net()
    expected.load_state_dict(module.seen[16])
    recalibrate_batch_norm(expected, Loader())
    assert same(state_of(module), state_of(expected))
    assert not alike(state_of(module), module.seen[16])
    assert all(same(module.trained[step], plain.trained[step]) for step in plain.trained)
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    assert not [c for c in callbacks if isinstance(c, RecalibrateBatchNorm)]  # as it was


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_by_hand_in_float64(kind: Any) -> None:
    module = Net()
    arguments: dict[str, Any] = {"decay": 0.8, "decay_warmup": False} if kind == "ema" else {}
    averaging = WeightAveraging(kind, start=0, interval="step", **arguments)
    fit(module, averaging, precision="64-true")
    states = [module.trained[step] for step in range(1, 17)]
    for name in ("net.0.weight", "net.0.bias", "net.1.weight", "net.1.bias"):
        expected = states[0][name]
        for n, state in enumerate(states[1:], 1):
            d = 0.8 if kind == "ema" else n / (n + 1)
            expected = d * expected + (1 - d) * state[name]
        torch.testing.assert_close(module.state_dict()[name], expected, rtol=1e-14, atol=1e-15)


def test_decay_warmup() -> None:
    module = Net()
    fit(module, WeightAveraging(decay=0.5, decay_warmup=True), precision="64-true")
    expected = module.trained[1]["net.0.weight"]
    decays = []
    for n in range(1, 16):
        decays.append(min(0.5, (1 + n) / (10 + n)))
        expected = decays[-1] * expected + (1 - decays[-1]) * module.trained[n + 1]["net.0.weight"]
    assert decays[0] == 2 / 11
    assert decays[-1] == 0.5
    torch.testing.assert_close(module.net[0].weight, expected, rtol=1e-14, atol=1e-15)


def test_half_precision_is_averaged_in_float32() -> None:
    module, plain = Net(), Net()
    averaging = WeightAveraging(decay=0.99)
    fit(module, averaging, precision="bf16-true", max_epochs=6)
    fit(plain, precision="bf16-true", max_epochs=6)
    states = [{n: v.float() for n, v in s.items()} for s in plain.trained.values()]
    expected = averaged(states, 0.99)
    assert alike(state_of(module), {n: v.bfloat16() for n, v in expected.items()})
    assert same(averaging._averages.kept, {n: expected[n] for n in averaging._averages.kept})
    assert same(module.trained[24], plain.trained[24])


# When.


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({"start": 10}, range(11, 17)),
        ({"start": 0.75}, range(13, 17)),
        ({"start": 0.0}, range(1, 17)),
        ({"frequency": 5}, [5, 10, 15]),
        ({"start": 3, "frequency": 5}, [8, 13]),
        ({"interval": "epoch", "frequency": 2}, [8, 16]),
        ({"interval": "epoch"}, [4, 8, 12, 16]),
        ({"interval": "epoch", "start": 0.5}, [12, 16]),
        ({"interval": "epoch", "start": 0.25, "frequency": 1}, [8, 12, 16]),
    ],
    ids=str,
)
def test_start_and_frequency(arguments: Any, steps: Any) -> None:
    module, averaging = Net(), WeightAveraging(decay=0.6, **arguments)
    fit(module, averaging)
    assert averaging.averaged == len(steps)
    assert alike(state_of(module), averaged([module.trained[s] for s in steps], 0.6))
    for step, state in module.seen.items():
        so_far = [module.trained[s] for s in steps if s <= step]
        right = averaged(so_far, 0.6) if so_far else module.trained[step]
        assert alike(state, right)


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_what_never_starts_leaves_all_alone(kind: Any, lines: list[str]) -> None:
    module, plain = Net(), Net()
    averaging = WeightAveraging(kind, start=100)
    with pytest.warns(UserWarning, match=r"has (16 step|4 epoch)s, and .* after 101: it never"):
        fit(module, averaging)
    fit(plain)
    assert averaging.averaged == 0
    assert same(state_of(module), state_of(plain))
    assert all(same(module.seen[step], plain.seen[step]) for step in plain.seen)
    assert lines == ["WeightAveraging: nothing was averaged, the module is as it was trained"]


@pytest.mark.parametrize("options", [{"max_epochs": -1, "max_steps": 16}, {"max_epochs": 4}])
def test_a_share_of_either_length(options: dict[str, Any]) -> None:
    averaging = WeightAveraging(start=0.5)
    fit(Net(), averaging, **options)
    assert averaging.averaged == 8


def test_optimizer_steps_count_and_not_batches() -> None:
    module, averaging = Net(), WeightAveraging(decay=0.6)
    fit(module, averaging, accumulate_grad_batches=3)
    assert averaging.averaged == 8
    assert alike(state_of(module), averaged([module.trained[s] for s in range(1, 9)], 0.6))
    module, averaging = Net(), WeightAveraging(decay=0.6, start=0.5)
    fit(module, averaging, GradientAccumulationScheduler({0: 4, 2: 1}))
    assert list(module.trained) == list(range(11))  # 0 before the first
    assert averaging.averaged == 5
    assert alike(state_of(module), averaged([module.trained[s] for s in range(6, 11)], 0.6))


class Manual(Net):
    """Steps of two optimizers, the second every other batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> None:  # type: ignore[override]
        self.manual_backward(super().training_step(batch, batch_idx))
        for optimizer in self.optimizers()[: 1 + batch_idx % 2]:  # type: ignore[index]
            optimizer.step()
            optimizer.zero_grad()
        self.zero_grad()

    @override
    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in self.net]


def test_manual_optimization_with_two_optimizers() -> None:
    module, averaging = Manual(), WeightAveraging(decay=0.6, frequency=3)
    fit(module, averaging)
    assert list(module.trained)[:4] == [1, 3, 4, 6]
    # At the first batch end at which another three steps are done.
    steps = [3, 6, 9, 12, 15, 18, 21, 24]
    assert averaging.averaged == len(steps)
    assert alike(state_of(module), averaged([module.trained[s] for s in steps], 0.6))


def test_an_epoch_that_is_cut_short_counts() -> None:
    class Short(Net):
        @override
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 2 else None

    module, averaging = Short(), WeightAveraging("ema", decay=0.6, interval="epoch")
    trainer = trainer_of(averaging, max_epochs=3)
    trainer.fit(module, DataLoader(BATCHES, batch_size=None), VALIDATION)  # type: ignore[arg-type]
    assert averaging.averaged == 3
    assert alike(state_of(module), averaged([module.trained[s] for s in (2, 4, 6)], 0.6))


# Who has them.


@pytest.mark.parametrize(
    ("callbacks", "options", "steps"),
    [
        pytest.param([], {"max_epochs": 3}, 12, id="max_epochs"),
        pytest.param([], {"max_steps": 10}, 10, id="max_steps"),
        pytest.param([At(9, stop)], {}, 10, id="should_stop"),
        pytest.param([At(9, interrupt)], {}, 9, id="KeyboardInterrupt"),
    ],
)
def test_the_module_ends_with_the_averages(
    callbacks: list[Callback], options: dict[str, Any], steps: int
) -> None:
    module = Net()
    places = {name: value.data_ptr() for name, value in module.state_dict().items()}
    trainer = trainer_of(*callbacks, WeightAveraging(decay=0.6), **options)
    try:
        trainer.fit(module, Loader(), VALIDATION)
    except SystemExit:
        assert steps == 9
    assert trainer.global_step == steps
    expected = averaged([module.trained[s] for s in range(1, steps + 1)], 0.6)
    assert alike(state_of(module), expected)
    assert places == {name: value.data_ptr() for name, value in module.state_dict().items()}
    parameters = trainer.optimizers[0].param_groups[0]["params"]
    assert all(a is b for a, b in zip(parameters, module.parameters(), strict=True))
    assert not trainer.optimizers[0]._optimizer_step_post_hooks


@pytest.mark.parametrize("options", [{"val_check_interval": 1}, {"inference_mode": False}], ids=str)
def test_training_goes_on_from_its_own_weights(options: dict[str, Any]) -> None:
    module, plain = Net(every=1, values=16 * [1.0]), Net()
    fit(module, WeightAveraging(decay=0.6), **options)
    fit(plain)
    assert all(same(module.trained[step], plain.trained[step]) for step in plain.trained)


class Fails(Net):
    """Raises in the validation after step 8."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    @override
    def on_validation_batch_end(self, *_: Any) -> None:
        if self.trainer.global_step == 8:
            raise self.error


def test_an_error_in_validation_leaves_the_weights_under_training() -> None:
    module = Fails(ValueError("a user's mistake"))
    with pytest.raises(ValueError, match="a user's mistake"):
        fit(module, WeightAveraging(decay=0.6))
    assert same(state_of(module), module.trained[8])


def test_an_error_in_training_leaves_the_weights_under_training() -> None:
    module = Net()
    with pytest.raises(ValueError, match="a user's mistake"):
        fit(module, WeightAveraging(decay=0.6), At(9, fail))
    assert same(state_of(module), module.trained[9])


def test_ctrl_c_in_validation() -> None:
    module = Fails(KeyboardInterrupt())
    with pytest.raises(SystemExit):
        fit(module, WeightAveraging(decay=0.6))
    assert alike(state_of(module), averaged([module.trained[s] for s in range(1, 9)], 0.6))


def test_an_error_after_the_end_leaves_the_averages() -> None:
    class Late(Net):
        @override
        def on_train_end(self) -> None:
            raise ValueError("too late")

    module = Late()
    with pytest.raises(ValueError, match="too late"):
        fit(module, WeightAveraging(decay=0.6))
    assert alike(state_of(module), averaged([module.trained[s] for s in range(1, 17)], 0.6))


def test_for_a_while() -> None:
    seen: list[Any] = []

    class Look(Callback):
        @override
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            with averaging.averaged_weights(pl_module), averaging.averaged_weights(pl_module):
                seen.append(state_of(pl_module))

        @override
        def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            with averaging.averaged_weights(pl_module):
                pass
            if not trainer.sanity_checking:
                assert same(state_of(pl_module), seen[-1])

    module, averaging = Net(), WeightAveraging(decay=0.6, start=2)
    fit(module, Look(), averaging)
    for step, state in enumerate(seen, 1):
        trained = [module.trained[s] for s in range(3, step + 1)]
        assert alike(state, averaged(trained, 0.6) if trained else module.trained[step])


def test_other_runs_leave_the_module_alone() -> None:
    module, averaging = Net(), WeightAveraging(decay=0.6)
    trainer = fit(module, averaging)
    final = state_of(module)
    module.seen.clear()
    trainer.validate(module, VALIDATION, verbose=False)
    assert same(module.seen[16], final)
    assert same(state_of(module), final)
    with torch.no_grad():
        module.get_parameter("net.0.weight").zero_()
    trainer.validate(module, VALIDATION, verbose=False)
    assert not module.get_parameter("net.0.weight").any()
