"""The table of tasks: what goes in, what the candidates are, where the answer is read.

Reference: Uni-Perceiver v2, section 3 (https://arxiv.org/abs/2211.09808); the routing attributes follow
Uni-Perceiver-MoE (https://arxiv.org/abs/2206.04674). A new task is a new row here, a reader and an evaluator.

Not stated in the paper, chosen here: detection is routed like classification, as an image whose target is text; the
names of the bits are inferred from the attribute table of Uni-Perceiver-MoE's code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

ATTRIBUTE_BITS = (
    "input_has_vision",
    "input_has_text",
    "target_has_vision",
    "target_has_text",
    "token_is_vision",
    "token_is_text",
    "token_is_target",
    "attention_is_causal",
)
"""Names of the eight routing attributes, in the order of the gate's input."""


@dataclass(frozen=True)
class Route:
    """One path through the Conditional MoE, chosen by the attributes of a token group alone.

    Args:
        name: Name of the route, a key of ``ROUTES``.
        attributes: Names of the bits of ``ATTRIBUTE_BITS`` that are one.
    """

    name: str
    attributes: frozenset[str]

    @property
    def bits(self) -> tuple[float, ...]:
        """The attribute vector, one 0.0 or 1.0 for each of ``ATTRIBUTE_BITS``."""
        return tuple(float(bit in self.attributes) for bit in ATTRIBUTE_BITS)


def _route(name: str, *attributes: str) -> Route:
    return Route(name, frozenset(attributes))


ROUTES: dict[str, Route] = {
    route.name: route
    for route in (
        _route("image", "input_has_vision", "target_has_text", "token_is_vision"),
        _route("label", "input_has_vision", "target_has_text", "token_is_text", "token_is_target"),
        _route(
            "caption_image",
            "input_has_vision",
            "input_has_text",
            "target_has_text",
            "token_is_vision",
        ),
        _route(
            "caption_text",
            "input_has_vision",
            "input_has_text",
            "target_has_text",
            "token_is_text",
            "attention_is_causal",
        ),
        _route("text", "input_has_text", "target_has_text", "token_is_text"),
        _route(
            "vocabulary",
            "input_has_vision",
            "input_has_text",
            "target_has_text",
            "token_is_text",
            "token_is_target",
        ),
    )
}
"""The six routes that exist. Images of classification, detection and retrieval share one."""

TemperatureFamily = Literal["labels", "regions", "vocabulary", "pairs"]
TEMPERATURE_FAMILIES: tuple[TemperatureFamily, ...] = ("labels", "regions", "vocabulary", "pairs")


@dataclass(frozen=True)
class Task:
    """What one training task asks of the model.

    Args:
        name: Key of the task in ``train_dataset`` and in ``TASKS``.
        input_routes: Routes of the input's token groups, in the order of the sequence.
        candidate_route: Route of the encoded candidates.
        temperature: The temperature that scales the task's cosines.
        label_set: Named label set whose names are the candidates, if the candidates are names.
    """

    name: str
    input_routes: tuple[str, ...]
    candidate_route: str
    temperature: TemperatureFamily
    label_set: str | None = None

    @property
    def routes(self) -> tuple[str, ...]:
        """All routes that the task uses, of inputs and of candidates."""
        return (*self.input_routes, self.candidate_route)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("classification", ("image",), "label", "labels", label_set="classification"),
        Task("detection", ("image",), "label", "regions", label_set="detection"),
        Task("captioning", ("caption_image", "caption_text"), "vocabulary", "vocabulary"),
        Task("retrieval", ("image",), "label", "pairs"),
        Task("language_modeling", ("text",), "vocabulary", "vocabulary"),
    )
}
"""The five training tasks; instance segmentation is detection with masks."""


def get_task(name: str) -> Task:
    """Look up a task by name.

    Raises:
        ValueError: If there is no such task.
    """
    if name not in TASKS:
        raise ValueError(f"`task` must be one of {sorted(TASKS)}, got {name!r}.")
    return TASKS[name]


def routes_of(tasks: Sequence[str] | None = None) -> list[str]:
    """List the routes that tasks use, each once.

    Args:
        tasks: Keys of ``TASKS``; None: all.

    Returns:
        Keys of ``ROUTES``.

    Raises:
        ValueError: If there is no such task.
    """
    names = list(TASKS) if tasks is None else tasks
    return list(dict.fromkeys(route for name in names for route in get_task(name).routes))
