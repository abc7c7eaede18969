"""Conditional Mixture of Experts with attribute-level routing, in every FFN of the unified decoder.

Reference: Uni-Perceiver v2, section 4.3, and Uni-Perceiver-MoE (https://arxiv.org/abs/2206.04674): the router sees
eight attributes of a token group, not the tokens, so a group's experts can be merged in weight space before the
product, in training and at inference.

Not stated in the paper, chosen here: 8 experts, top 2, gate noise with standard deviation 1/E, one decision shared
by both Linears of a feed-forward network (inherited from Uni-Perceiver-MoE).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .tasks import ATTRIBUTE_BITS, ROUTES, TASKS


@dataclass(frozen=True)
class TokenGroup:
    """Neighbouring tokens of a sequence that share one route.

    Args:
        route: Key of ``ROUTES``.
        length: Number of tokens.
    """

    route: str
    length: int


class AttributeGate(nn.Module):
    """Decides from eight attributes which experts a token group uses: Linear, LayerNorm, Linear, softmax, top k."""

    def __init__(self, hidden_size: int, num_experts: int, num_experts_per_group: int) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.num_experts_per_group = num_experts_per_group
        self.attribute_projection = nn.Linear(len(ATTRIBUTE_BITS), hidden_size)
        self.gate_norm = nn.LayerNorm(hidden_size)
        self.expert_projection = nn.Linear(hidden_size, num_experts, bias=False)

    def forward(self, route: str, generator: torch.Generator | None = None) -> Tensor:
        """Weigh the experts for one route.

        Args:
            route: Key of ``ROUTES``; its attributes are all that the gate sees.
            generator: Source of the training noise; without it there is none.

        Returns:
            ``(num_experts,)`` in fp32, zero but for the chosen experts, sum one.
        """
        weight = self.attribute_projection.weight
        bits = torch.tensor(ROUTES[route].bits, device=weight.device, dtype=weight.dtype)
        states = self.gate_norm(self.attribute_projection(bits))
        logits = F.linear(states.float(), self.expert_projection.weight.float())
        if generator is not None:
            noise = torch.randn(self.num_experts, generator=generator)
            logits = logits + noise.to(logits.device) / self.num_experts
        top = logits.topk(self.num_experts_per_group)
        # a softmax over the chosen ones equals the renormalised softmax over all
        return torch.zeros_like(logits).scatter(0, top.indices, top.values.softmax(0))


class ExpertLinear(nn.Module):
    """A Linear that holds several weight sets and is used with their weighted sum.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        num_sets: Weight sets: experts, or the dense layers of a merged model.
    """

    def __init__(self, in_features: int, out_features: int, num_sets: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_sets, out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(num_sets, out_features))

    def reset_parameters(self, std: float) -> None:
        """Initialise every weight set independently."""
        init.normal_(self.weight, mean=0.0, std=std)
        init.zeros_(self.bias)

    def merged(self, mixture: Tensor, num_chosen: int) -> tuple[Tensor, Tensor]:
        """Merge the weight sets.

        Args:
            mixture: Weight of each set, ``(num_sets,)``.
            num_chosen: How many sets can have a weight other than zero.

        Returns:
            One weight ``(out_features, in_features)`` and one bias ``(out_features,)``.
        """
        # in the order of the sets; `nonzero` would make the shape depend on the data, which nothing can export
        chosen = mixture.topk(num_chosen).indices.sort().values
        scale = mixture[chosen].to(self.weight.dtype)
        weight = torch.einsum("e,eoi->oi", scale, self.weight[chosen])
        return weight, scale @ self.bias[chosen]


class ConditionalFeedForward(nn.Module):
    """A Transformer's feed-forward network whose weights depend on the token group's attributes.

    Args:
        hidden_size: Width D of the tokens.
        intermediate_size: Width between the two Linears.
        num_experts: Weight sets of each Linear.
        num_experts_per_group: Weight sets merged for one group.
        merged_routes: Routes of a deployed model, which has one dense weight set for each and no gate.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        num_experts: int,
        num_experts_per_group: int,
        merged_routes: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.merged_routes = tuple(merged_routes or ())
        num_sets = num_experts if merged_routes is None else len(merged_routes)
        self.gate = AttributeGate(hidden_size, num_experts, num_experts_per_group) if merged_routes is None else None
        self.up_projection = ExpertLinear(hidden_size, intermediate_size, num_sets)
        self.down_projection = ExpertLinear(intermediate_size, hidden_size, num_sets)

    def dense_layers(self, route: str, generator: torch.Generator | None = None) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of both Linears for a route: merged experts, or what a deployed model holds.

        Args:
            route: Key of ``ROUTES``.
            generator: Source of the gate's training noise.

        Returns:
            ``(out_features, in_features)`` and ``(out_features,)`` of each.

        Raises:
            ValueError: If the model was merged without this route.
        """
        linears = (self.up_projection, self.down_projection)
        if self.gate is not None:
            mixture = self.gate(route, generator)
            return [linear.merged(mixture, self.gate.num_experts_per_group) for linear in linears]
        if route not in self.merged_routes:
            needed_by = [task.name for task in TASKS.values() if route in task.routes]
            raise ValueError(
                f"This model was merged for the routes {list(self.merged_routes)} and cannot use {route!r}, which the "
                f"tasks {needed_by} need. Load the unmerged checkpoint, or merge it with `tasks` that name them."
            )
        index = self.merged_routes.index(route)
        return [(linear.weight[index], linear.bias[index]) for linear in linears]

    def forward(
        self,
        hidden_states: Tensor,
        groups: Sequence[TokenGroup],
        generators: Sequence[torch.Generator] | None = None,
    ) -> Tensor:
        """Apply each group's own network.

        Args:
            hidden_states: ``(batch, tokens, D)``.
            groups: The groups in order; their lengths add up to ``tokens``.
            generators: One source of gate noise for each group, in training.

        Returns:
            ``(batch, tokens, D)``.
        """
        parts = hidden_states.split([group.length for group in groups], dim=1)
        outputs = []
        for index, (part, group) in enumerate(zip(parts, groups)):
            up, down = self.dense_layers(group.route, generators[index] if generators else None)
            outputs.append(F.linear(F.gelu(F.linear(part, *up)), *down))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    @torch.no_grad()
    def merge(self, routes: Sequence[str]) -> "ConditionalFeedForward":
        """Make the deployed form: one dense network for each route.

        Args:
            routes: The routes to keep.

        Returns:
            A new module with the same outputs on those routes.
        """
        hidden_size = self.up_projection.weight.shape[2]
        merged = ConditionalFeedForward(
            hidden_size, self.up_projection.weight.shape[1], 1, 1, merged_routes=routes
        ).to(self.up_projection.weight)
        for index, route in enumerate(routes):
            for target, (weight, bias) in zip(
                (merged.up_projection, merged.down_projection), self.dense_layers(route)
            ):
                target.weight[index].copy_(weight)
                target.bias[index].copy_(bias)
        return merged
