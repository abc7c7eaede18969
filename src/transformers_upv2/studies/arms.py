"""The arms of all studies, as data: the paper's tables, and the methods of its neighbourhood.

Reference: Uni-Perceiver v2, section 5.3 and tables 2 to 5: four tasks, without language modeling, from an image
encoder that was pretrained on detection.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

TASKS = ("detection", "classification", "retrieval", "captioning")
"""The tasks of the paper's ablations."""

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Arm:
    """What is trained, on which tasks and from where.

    Attributes:
        name: Folder of its runs.
        tasks: Sampled equally often.
        config: Fields of the model's config that differ; a dict replaces single fields of a part, or the part if
            it has a ``model_type``. At ``region_loss_weight`` 0 no class is learned, and proposals are measured.
        arguments: Training arguments that differ.
        start: Where the image side comes from: ``"encoders"``: a checkpoint's; ``"detection"``: pretrained on the
            world's detection from ``"imagenet"``: a new one with ImageNet's backbone; ``"scratch"``: all new.
        locked: The image side stays as it is and has perceived every image once.
        processes: With two, both share the batches.
        rounds: How many times the usual number of updates; rounded to whole ones.
        method: How it is trained, key of ``METHODS``.
    """

    name: str
    tasks: tuple[str, ...] = TASKS
    config: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    arguments: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    start: Literal["encoders", "detection", "imagenet", "scratch"] = "encoders"
    locked: bool = True
    processes: int = 1
    rounds: float = 1
    method: Literal["plain", "distilled", "untrained", "visft"] = "plain"


@dataclass(frozen=True)
class Study:
    """One table.

    Attributes:
        title: What it asks.
        arms: Each arm under the name of its row.
        reference: Row that all others are compared with.
        finding: What the paper found in its own setting, for the reader to compare; None without a counterpart.
    """

    title: str
    arms: Mapping[str, Arm]
    reference: str
    finding: str | None = None


_DENSE = {"decoder_config": {"num_experts": 1, "num_experts_per_group": 1}}
_ADAMW = {"optimizer": "adamw"}
_PROPOSALS_ALONE = {"region_loss_weight": 0.0}
_SMALL_BACKBONE = {
    "model_type": "timm_backbone",
    "backbone": "test_efficientnet",
    "out_indices": [1, 2, 3, 4],
    "freeze_batch_norm_2d": False,
}
_DEFAULT = Arm("all_tasks")


def _without(task: str) -> tuple[str, ...]:
    return tuple(name for name in TASKS if name != task)


def _detector(name: str, **proposal_config: Any) -> Arm:
    """A proposal network that learns to find objects from ImageNet's backbone."""
    config = {"proposal_config": proposal_config, **_PROPOSALS_ALONE}
    return Arm(name, ("detection",), config, {"learning_rate": 2e-3}, start="imagenet", locked=False, rounds=6)


def _student(name: str, **fields: Any) -> Arm:
    """A proposal network that learns to find objects with a small backbone that nothing has trained."""
    small = {"backbone_config": _SMALL_BACKBONE, **_PROPOSALS_ALONE}
    # normalized gradients of the distillation's own parameters are small beside Adam's usual epsilon
    arguments = {"learning_rate": 2e-3, "adam_epsilon": 1e-12}
    return Arm(name, ("detection",), small, arguments, locked=False, rounds=6, **fields)


def _start_arm(start: Literal["scratch", "imagenet", "detection"]) -> Arm:
    """All tasks with an image side that learns, slowly enough not to be torn down by a unified decoder that is new."""
    multipliers = {"model.text_encoder": 0.3, "model.image_encoder": 0.3}
    arguments = {"learning_rate": 3e-4, "warmup_steps": 40, "lr_multipliers": multipliers}
    return Arm(f"start_{start}", arguments=arguments, start=start, locked=False, rounds=1.4)


def _sampling_arm(name: str, *, gather: bool, **arguments: Any) -> Arm:
    return Arm(f"sampling_{name}", config={"gather_negatives": gather}, arguments=arguments, processes=2)


STUDIES = {
    "table2": Study(
        title="What the unified decoder sees of an image",
        arms={
            "global": Arm("global", _without("detection"), {"image_representation": "global"}),
            "regional": Arm("regional", config={"image_representation": "regional"}),
            "global + regional": _DEFAULT,
        },
        reference="global + regional",
        finding="regional helps retrieval and captioning most, global helps classification, both together is best "
        "overall.",
    ),
    "table3": Study(
        title="Collaboration and interference between tasks",
        arms={
            **{f"{task} alone": Arm(f"only_{task}", (task,), _DENSE) for task in TASKS},
            "all tasks": Arm("all_tasks_dense", config=_DENSE),
            **{f"without {task}": Arm(f"without_{task}", _without(task), _DENSE) for task in TASKS},
            "all tasks, Conditional MoE": _DEFAULT,
        },
        reference="all tasks",
        finding="tasks interfere more often than they help, retrieval suffers most from the others, and Conditional "
        "MoE mitigates it on every task.",
    ),
    "table4": Study(
        title="Sampling and optimizer, on two processes",
        arms={
            "mixed, AdamW": _sampling_arm("mixed", gather=False, sampling="mixed", **_ADAMW),
            "unmixed, AdamW": _sampling_arm("unmixed", gather=False, **_ADAMW),
            "unmixed, gathered, AdamW": _sampling_arm("gathered", gather=True, **_ADAMW),
            "unmixed, gathered, AdamW clipped at 1.0": _sampling_arm(
                "clipped", gather=True, max_grad_norm=1.0, **_ADAMW
            ),
            "unmixed, gathered, TBGN": _sampling_arm("tbgn", gather=True),
        },
        reference="unmixed, gathered, TBGN",
        finding="mixed and unmixed are close, gathered negatives lift retrieval, TBGN lifts all, captions most.",
    ),
    "table5": Study(
        title="Where the image side starts",
        arms={
            "scratch": _start_arm("scratch"),
            "ImageNet classification": _start_arm("imagenet"),
            "the world's detection": _start_arm("detection"),
        },
        reference="the world's detection",
        finding="detection pretraining after ImageNet lifts detection and captioning, and leaves the rest as it is.",
    ),
    "fgd": Study(
        title="A small student, alone and with a teacher (FGD)",
        arms={
            "student alone": _student("student_alone", start="scratch"),
            "the teacher's heads": _student("student_inherits"),
            "the teacher's heads, FGD": _student("student_distilled", method="distilled"),
        },
        reference="the teacher's heads, FGD",
    ),
    "visft": Study(
        title="A linear probe of the backbone on digits that the world does not have (ViSFT)",
        arms={
            "ImageNet's backbone": Arm("visft_before", (), start="imagenet", locked=False, method="untrained"),
            "after ViSFT": Arm(
                "visft_after", ("detection", "captioning"), start="imagenet", locked=False, rounds=2, method="visft"
            ),
        },
        reference="after ViSFT",
    ),
    "queries": Study(
        title="Query positions (GQPos) and similar attention (SiA) in the proposal network",
        arms={
            "anchor, deformable (Mask DINO)": _detector("queries_anchor"),
            "static (DETR)": _detector("queries_static", query_position="static"),
            "guided (GQPos)": _detector("queries_guided", query_position="guided"),
            "dense": _detector("queries_dense", cross_attention="dense"),
            "dense, similar attention (SiA)": _detector(
                "queries_similar", cross_attention="dense", similar_attention=True
            ),
        },
        reference="anchor, deformable (Mask DINO)",
    ),
}
"""The studies by name."""

ARMS = {arm.name: arm for study in STUDIES.values() for arm in study.arms.values()}
"""All arms by name; one that several studies share is trained once."""
