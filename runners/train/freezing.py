"""A classifier trained alone, on features that stay as they are."""

from collections.abc import Callable

from torch import nn


def classifier_names(model: nn.Module) -> list[str]:
    """Names of the weights of the last linear layer.

    Raises:
        ValueError: the model has no `get_classifier`.
    """
    find: Callable[[], nn.Module] | None = getattr(model, "get_classifier", None)
    if find is None:
        raise ValueError(f"{type(model).__name__} has no get_classifier, which --init-from needs")
    weights = {id(parameter) for parameter in find().parameters()}
    return [name for name, parameter in model.named_parameters() if id(parameter) in weights]


def freeze(model: nn.Module) -> None:
    """Leave the classifier alone to be trained."""
    head = set(classifier_names(model))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in head)


def set_training(model: nn.Module, *, frozen: bool) -> None:
    """Put a model into training mode; of a frozen one the classifier alone, so that no statistics move."""
    model.train(not frozen)
    if frozen:
        last: nn.Module = model.get_classifier()  # type: ignore[operator]
        last.train()
