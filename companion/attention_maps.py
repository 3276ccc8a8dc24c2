"""Attention maps: the weights of every attention in a model, for whoever wants to look at them."""

from typing import Any

import torch
from torch import Tensor, nn

from companion.attention import MultiHeadAttention
from companion.packing import keep_padding


@torch.no_grad()
def attention_weights(model: nn.Module, *inputs: Any) -> dict[str, list[Tensor]]:
    """Run a model once, and return the weights of each `MultiHeadAttention` in it.

    The model is called as it is, in its mode and on its inputs; only its attentions take the explicit path, which
    forms the weights.

    Args:
        model: The model.
        inputs: What to call it with.

    Returns:
        For the name of each attention in the model, in the order of the calls, the weights ``(batch, heads, query,
        key)`` of each call to it; of a module that layers share there are several.

    Example:
        >>> model = TextClassifier(ClassifierConfig(vocab_size=9, num_layers=2)).eval()
        >>> weights = attention_weights(model, torch.tensor([[5, 6, 7]]))
        >>> list(weights), weights["encoder.layers.1.attention"][0].shape
        (['encoder.layers.0.attention', 'encoder.layers.1.attention'], torch.Size([1, 2, 3, 3]))
    """
    names = {module: name for name, module in model.named_modules() if isinstance(module, MultiHeadAttention)}
    weights: dict[str, list[Tensor]] = {}

    def take_explicit_path(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "need_weights": True}

    def keep(module: nn.Module, _: Any, output: Any) -> None:
        weights.setdefault(names[module], []).append(output.weights)  # type: ignore[index]

    hooks = [module.register_forward_pre_hook(take_explicit_path, with_kwargs=True) for module in names]
    hooks += [module.register_forward_hook(keep) for module in names]
    try:
        with keep_padding():
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return weights
