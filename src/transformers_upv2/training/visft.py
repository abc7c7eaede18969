"""ViSFT: fine-tune the image encoder on tasks with labels, so that it gets better at others.

Reference: Supervised Fine-tuning in turn Improves Visual Foundation Models (https://arxiv.org/abs/2401.10222).
Stage 1 trains task heads on a frozen encoder (`freeze_encoder`); stage 2 freezes the heads and trains LoRA on the
queries and values of the encoder (`adapt_encoder`); then LoRA is added to the weights (`merge_encoder`).

Our choices: the encoder is the backbone of our image encoder, the part that is pretrained on images alone, and the
heads are all that stands behind it: proposal network, tokens, text encoder, unified decoder, likelihood. Frozen parts
stay in evaluation mode whatever a Trainer asks for, so no dropout, gate noise or running statistic of theirs acts; in
stage 2 the encoder itself trains as usual, except for its BatchNorms.
Needs the extra ``visft``.
"""

from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any, Literal

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from transformers_upv2.model.pretrained_upv2 import UniPerceiverV2PreTrainedModel
from transformers_upv2.training.fused_qkv import fuse_projections, split_projections

STAGE_2_ARGUMENTS: dict[str, Any] = {
    "optimizer": "adamw",
    "learning_rate": 1e-5,
    "weight_decay": 1e-4,
    "max_grad_norm": 0.1,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2000,
    "max_steps": 100_000,
    "per_device_train_batch_size": 8,
    # the original: detection .3 and instance segmentation .3, which are one task here
    "sampling_probabilities": {"captioning": 0.4, "detection": 0.6},
}
"""The original's values of stage 2, for `UniPerceiverV2TrainingArguments`."""

QUERIES = ("q", "q_proj", "query")
VALUES = ("v", "v_proj", "value")


def freeze_encoder(model: UniPerceiverV2PreTrainedModel) -> None:
    """Prepare stage 1, in place: only the heads train.

    Args:
        model: Any of our models.

    Raises:
        ValueError: If its encoder is adapted.
    """
    base = _base(model)
    _check_not_adapted(base.image_encoder.backbone)
    _release(model)
    _freeze(base.image_encoder.backbone)


def adapt_encoder(
    model: UniPerceiverV2PreTrainedModel,
    rank: int = 64,
    alpha: int = 1,
    layers: Literal["attention", "pointwise"] = "attention",
) -> None:
    """Prepare stage 2, in place: only LoRA in the encoder trains, W + alpha / rank · B A, where B begins with zeros.

    Args:
        model: Any of our models, after stage 1.
        rank: Rows of A, columns of B.
        alpha: The default 1 gives the scale 1/64, as in the original, whose library has it as default.
        layers: "attention": queries and values of every attention block. "pointwise", our extension, for a backbone
            without attention: its 1x1 convolutions.

    Raises:
        ValueError: If the backbone has no such layers, or is adapted already.
    """
    if layers not in TARGETS:
        raise ValueError(f"`layers` must be one of {list(TARGETS)}, got {layers!r}.")
    if rank < 1:
        raise ValueError(f"`rank` must be at least 1, got {rank}.")
    base = _base(model)
    backbone = base.image_encoder.backbone
    _check_not_adapted(backbone)
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=0.0, bias="none", target_modules=TARGETS[layers](backbone)
    )
    _release(model)
    model.requires_grad_(False)
    for frozen in _heads(base):
        _freeze(frozen)
    for module in backbone.modules():
        if isinstance(module, _BatchNorm):
            _freeze(module)
    inject_adapter_in_model(config, backbone)


def merge_encoder(model: UniPerceiverV2PreTrainedModel) -> None:
    """Add LoRA to the weights, in place; the model has the parameters of before, which all train.

    Args:
        model: A model that was given to `adapt_encoder`.

    Raises:
        ValueError: If its encoder is not adapted, or the sum is not finite.
    """
    backbone = _base(model).image_encoder.backbone
    adapted = dict(_adapted(backbone))
    if not adapted:
        raise ValueError("`model` must have an adapted encoder, got one without LoRA. Call `adapt_encoder` first.")
    for name, layer in adapted.items():
        layer.merge(safe_merge=True)
        backbone.set_submodule(name, layer.get_base_layer())
    del backbone.peft_config
    fuse_projections(backbone)
    _release(model)


def _attention_projections(backbone: nn.Module) -> list[str]:
    """Take fused projections apart, and name the queries and values."""
    split_projections(backbone)
    linears = [name for name, module in backbone.named_modules() if isinstance(module, nn.Linear)]
    queries, values = ([n for n in linears if n.rpartition(".")[2] in names] for names in (QUERIES, VALUES))
    if not queries or len(queries) != len(values):
        fuse_projections(backbone)
        raise ValueError(
            "The backbone must project queries and values, each by a Linear of its own or all by one with the keys, "
            f"got {type(backbone).__name__} with {len(queries)} Linears for queries and {len(values)} for values. "
            "Choose a backbone with such attention, such as Swin; ViSFT says nothing about others. A CNN can be "
            "adapted with `layers='pointwise'`, our extension."
        )
    return queries + values


def _pointwise_convolutions(backbone: nn.Module) -> list[str]:
    names = [
        name
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    ]
    if not names:
        raise ValueError(
            f"The backbone must have 1x1 convolutions, got {type(backbone).__name__} without any. Use "
            "`layers='attention'`."
        )
    return names


TARGETS: dict[str, Callable[[nn.Module], list[str]]] = {
    "attention": _attention_projections,
    "pointwise": _pointwise_convolutions,
}


def _base(model: UniPerceiverV2PreTrainedModel) -> Any:
    """Return the `UniPerceiverV2Model` inside any of our models."""
    return model.base_model


def _heads(base: Any) -> Iterator[nn.Module]:
    encoder = base.image_encoder
    yield from (child for child in base.children() if child is not encoder)
    yield from (child for child in encoder.children() if child is not encoder.backbone)


def _adapted(backbone: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    return ((name, module) for name, module in backbone.named_modules() if isinstance(module, LoraLayer))


def _check_not_adapted(backbone: nn.Module) -> None:
    if next(_adapted(backbone), None) is not None:
        raise ValueError("`model` must have a plain encoder, got an adapted one. Call `merge_encoder` first.")


def _freeze(module: nn.Module) -> None:
    module.requires_grad_(False)
    module.train = MethodType(_stay_in_evaluation, module)  # type: ignore[method-assign]
    module.eval()


def _stay_in_evaluation(module: nn.Module, mode: bool = True) -> nn.Module:  # noqa: ARG001
    """Take the place of ``train``, which a Trainer calls on the whole model before every step."""
    return type(module).train(module, False)


def _release(model: nn.Module) -> None:
    for module in model.modules():
        vars(module).pop("train", None)
    model.train(model.training).requires_grad_(True)
