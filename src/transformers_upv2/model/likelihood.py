"""The likelihood of a candidate: P(x, y) ∝ exp(cos(g∘f(x), g∘f(y)) / τ) (Eq. 5 and 6).

Not stated in the paper, chosen here: one temperature per task family (inherited from Uni-Perceiver's code; one for
all as an option), kept as log(1/τ), clamped in place; in the focal detection score a learned bias with focal prior.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .tasks import TEMPERATURE_FAMILIES, TemperatureFamily

FOCAL_PRIOR = 0.01
"""Score of every label before training, in the focal detection score."""


class Likelihood(nn.Module):
    """The head shared by inputs and candidates, and the temperatures.

    Args:
        hidden_size: Width D of the decoder's tokens and of the embeddings.
        temperature: Initial τ.
        shared: Use one temperature for all families.
        max_logit_scale: Upper bound of 1/τ.
        layer_norm_eps: Epsilon of the final LayerNorm.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        temperature: float,
        shared: bool,
        max_logit_scale: float,
        layer_norm_eps: float,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.max_log_scale = math.log(max_logit_scale)
        self.shared = shared
        self.output_norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.output_projection = nn.Linear(hidden_size, hidden_size)
        families = TEMPERATURE_FAMILIES[:1] if shared else TEMPERATURE_FAMILIES
        self.log_logit_scale = nn.ParameterDict({family: nn.Parameter(torch.empty(())) for family in families})
        self.region_bias = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the temperatures and the focal prior."""
        for parameter in self.log_logit_scale.values():
            init.constant_(parameter, math.log(1.0 / self.temperature))
        init.constant_(self.region_bias, math.log(FOCAL_PRIOR / (1.0 - FOCAL_PRIOR)))

    def embed(self, hidden_states: Tensor) -> Tensor:
        """Map decoder outputs ``(..., D)`` to unit vectors ``(..., D)``."""
        return F.normalize(self.output_projection(self.output_norm(hidden_states)), dim=-1)

    @torch.no_grad()
    def clamp_(self) -> None:
        """Keep every 1/τ at or below its bound; called before each training step."""
        for parameter in self.log_logit_scale.values():
            parameter.clamp_(max=self.max_log_scale)

    def logit_scale(self, family: TemperatureFamily) -> Tensor:
        """1/τ of a family, scalar."""
        return self.log_logit_scale[TEMPERATURE_FAMILIES[0] if self.shared else family].exp()

    def logits(self, embeddings: Tensor, candidates: Tensor, family: TemperatureFamily) -> Tensor:
        """Cosine over temperature.

        Args:
            embeddings: Unit vectors of inputs, ``(..., D)``.
            candidates: Unit vectors of candidates, ``(candidates, D)``, or with a batch dimension.
            family: Whose temperature to use.

        Returns:
            ``(..., candidates)``.
        """
        return self.logit_scale(family) * (embeddings @ candidates.transpose(-1, -2))
