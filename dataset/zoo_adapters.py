"""LoRA and DoRA on any weights of any network: the gradient of a weight gives that of its factors."""

from typing import Any

import torch
from torch import nn

from dataset.zoo_weights import is_weight

ATTENTION = ("attn", "attention", "SelfAttention", "EncDecAttention", "weight_hh", "conv1", "in_proj", "net.0", "net.4")


def is_target(name: str, tensor: torch.Tensor, targets: str) -> bool:
    """Whether an adapter on "all", "attention" (or what is like it) or "one" kind of weight changes a tensor."""
    if not is_weight(name, tensor) or min(tensor.shape[0], tensor.numel() // tensor.shape[0]) < 8:
        return False
    if targets == "all":
        return True
    if targets == "attention":
        return any(part in name for part in ATTENTION)
    one = ("q_proj", "query", "c_attn", ".q.", "weight_ih", "conv2", "in_proj", "net.2")
    return any(part in name for part in one)


class Adapters:
    """W + B A, or with "dora" its rows at lengths of their own, for each target; the network itself is frozen."""

    def __init__(self, model: nn.Module, recipe: dict[str, Any]) -> None:
        targets, rank = recipe.get("targets", "all"), recipe["rank"]
        self.weights = {n: w for n, w in model.named_parameters() if is_target(n, w, targets)}
        for name, weight in model.named_parameters():
            weight.requires_grad = name in self.weights
        self.frozen = {name: self._matrix(weight.detach().clone()) for name, weight in self.weights.items()}
        self.factors: dict[str, list[nn.Parameter]] = {}
        for name, frozen in self.frozen.items():
            down = torch.randn(*frozen.shape[:-2], rank, frozen.shape[-1]) / frozen.shape[-1] ** 0.5
            up = torch.zeros(*frozen.shape[:-1], rank)
            lengths = [frozen.norm(dim=-1, keepdim=True)] if recipe.get("dora") else []
            self.factors[name] = [nn.Parameter(part) for part in (up, down, *lengths)]
        self.parameters = [part for parts in self.factors.values() for part in parts]
        self.made: dict[str, torch.Tensor] = {}

    @staticmethod
    def _matrix(weight: torch.Tensor) -> torch.Tensor:
        """A convolution as a matrix; experts stay a stack of matrices."""
        return weight.flatten(1) if weight.ndim == 4 else weight

    def put(self) -> None:
        """Write the adapted weights into the network."""
        for name, weight in self.weights.items():
            up, down, *lengths = self.factors[name]
            made = self.frozen[name] + up @ down
            if lengths:
                made = made / made.norm(dim=-1, keepdim=True) * lengths[0]
            self.made[name] = made
            weight.data.copy_(made.detach().reshape(weight.shape))

    def pull(self) -> None:
        """Pass the gradients of the network's weights on to the factors."""
        for part in self.parameters:
            part.grad = None
        for name, made in self.made.items():
            made.backward(self.weights[name].grad.reshape(made.shape))
