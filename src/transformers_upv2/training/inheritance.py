"""Give a student what a larger teacher has learned, wherever both have the same shapes.

Reference: Focal and Global Knowledge Distillation for Detectors (https://arxiv.org/abs/2111.11837), whose students
begin with all of the teacher but its backbone.
"""

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

logger = logging.get_logger(__name__)

BACKBONE = "image_encoder.backbone."


@torch.no_grad()
def inherit_parts(student: PreTrainedModel, teacher: PreTrainedModel) -> list[str]:
    """Copy every tensor of a teacher that the student has under the same name and with the same shape.

    The backbone is never copied, so a teacher may have any other one. What is inherited and what is not is logged.

    Args:
        student: The base model or any task class; it is changed in place.
        teacher: Likewise; it is only read.

    Returns:
        Names of the copied tensors, as in the base model.
    """
    theirs = teacher.base_model.state_dict()
    own = {name: value for name, value in student.base_model.state_dict().items() if not name.startswith(BACKBONE)}
    inherited = [name for name, value in own.items() if name in theirs and theirs[name].shape == value.shape]
    for name in inherited:
        own[name].copy_(theirs[name])
    reshaped = [name for name in own if name in theirs and theirs[name].shape != own[name].shape]
    unknown = [name for name in own if name not in theirs]
    logger.warning(
        f"{len(inherited)} of the student's {len(own)} tensors outside of its backbone are the teacher's now; "
        f"{len(reshaped)} have another shape there: {reshaped}; {len(unknown)} are not there: {unknown}."
    )
    return inherited
