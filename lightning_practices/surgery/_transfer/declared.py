"""New heads in the ways of timm and transformers."""

from inspect import signature
from typing import Any

from torch import nn

from lightning_practices.surgery._transfer.detectors import Predictor
from lightning_practices.surgery._transfer.heads import check_own, classifiers_of_timm


def reset_timm(model: nn.Module, network: Any, num_classes: int) -> tuple[str, ...]:
    """Replace the classifiers of a timm model by its ``reset_classifier``.

    Returns:
        The names of the new layers in ``model``.

    Raises:
        ValueError: If a classifier is parametrized, sharded or shared.
    """
    names = {module: name for name, module in model.named_modules()}
    old = [part for each in classifiers_of_timm(network) for part in each.modules()]
    for part in old:
        check_own(model, names[part], part)
    like = next((p for part in old for p in part.parameters()), next(network.parameters()))
    before = set(model.modules())
    options = signature(network.reset_classifier).parameters
    kept = {"distillation": network.head.distillation} if "distillation" in options else {}
    network.reset_classifier(num_classes, **kept)  # a distilled model gets two new layers
    made = [(name, module) for name, module in model.named_modules() if module not in before]
    for _, module in made:
        module.to(like.device, like.dtype).train(network.training)
    return tuple(name for name, module in made if any(True for _ in module.parameters(False)))


def check_task(network: Any) -> None:
    """Raise ``ValueError`` if a transformers model has no head for labels, by its class."""
    name = type(network).__name__
    if name.endswith("Model"):
        raise ValueError(
            f"{name} has no head for labels: load the weights into a class with one, as"
            " AutoModelForSequenceClassification"
        )
    if name.endswith("ForQuestionAnswering"):
        raise ValueError(f"{name} outputs the starts and ends of answers, and no classes")


def check_labels(network: Any, layers: list[Predictor]) -> None:
    """Raise ``ValueError`` if the output layers of a transformers model don't output its labels."""
    labels = network.config.num_labels
    if other := [each for each in layers if each.classes != labels]:
        raise ValueError(
            f"{type(network).__name__} ends in {other[0].name!r} with {other[0].classes} outputs,"
            f" but its config.num_labels is {labels}, so that this layer does not output the"
            " labels: replace it by assignment, or load the weights into a class with a head for"
            " labels, as AutoModelForSequenceClassification"
        )


def set_labels(network: Any, num_classes: int) -> None:
    """Set the number of labels in a transformers model and in its configs."""
    configs = {id(m.config): m.config for m in network.modules() if hasattr(m, "config")}
    before = network.config.num_labels
    for module in network.modules():
        if vars(module).get("num_labels") == before:
            module.num_labels = num_classes
    for config in configs.values():
        if getattr(config, "num_labels", None) != before:
            continue
        config.num_labels = num_classes  # sets id2label and label2id too
        needs_one = getattr(config, "problem_type", None) == "regression"
        if (num_classes == 1) != needs_one:
            config.problem_type = None  # set anew by the loss, from the number of labels
