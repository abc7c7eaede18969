"""FGDLoss: how far the feature map of a student is from that of a teacher, weighted by objects and attention.

Reference: Focal and Global Knowledge Distillation for Detectors (https://arxiv.org/abs/2111.11837).

    A^S(x) = #cells · softmax over cells of mean_c |x| / τ        A^C(x) = C · softmax over channels of mean_hw |x| / τ
    L_fg   = 1/N Σ M_fg A^S(T) A^C(T) (T - S)²                    L_bg the same with M_bg
    L_att  = 1/N Σ |A^S(S) - A^S(T)| + 1/N Σ |A^C(S) - A^C(T)|
    L_rel  = 1/N Σ (R_s(S) - R_t(T))²                             R: two global context blocks (GCNet), both trained
    L      = α L_fg + β L_bg + γ L_att + λ L_rel

S and T are the two maps, N is the batch size. Our choice where the official code differs: boxes are divided by the
size of the canvas that the map covers, not by that of the image on it; and a padded cell does not exist, it is neither
foreground nor background and is left out of every softmax, mean and sum. So padding changes nothing, and without
padding all numbers are the official ones.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence


class FGDLoss(nn.Module):
    """Compares one level of a student with that of a teacher.

    The parameters have the shapes and the order of the official code. All is computed in their precision, under
    autocast too.

    Args:
        student_channels: Channels C_s of the student's map.
        teacher_channels: Channels C of the teacher's map, at least 2. If C_s differs, a 1x1 convolution aligns it.
        alpha: Weight α of the foreground.
        beta: Weight β of the background.
        gamma: Weight γ of the attention.
        lambda_: Weight λ of the relations.
        tau: Temperature τ of the attention.

    Raises:
        ValueError: If a number is out of its range.
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        *,
        alpha: float,
        beta: float,
        gamma: float,
        lambda_: float,
        tau: float,
    ) -> None:
        super().__init__()
        if teacher_channels < 2:  # the blocks halve them
            raise ValueError(f"`teacher_channels` must be at least 2, got {teacher_channels}.")
        if not tau > 0:
            raise ValueError(f"`tau` must be positive, got {tau}.")
        self.weights = {"foreground": alpha, "background": beta, "attention": gamma, "relation": lambda_}
        if not all(weight >= 0 for weight in self.weights.values()):
            raise ValueError(f"The weights of the parts must not be negative, got {self.weights}.")
        self.tau = tau
        self.align = nn.Conv2d(student_channels, teacher_channels, 1) if student_channels != teacher_channels else None
        self.student_mask = nn.Conv2d(teacher_channels, 1, 1)
        self.teacher_mask = nn.Conv2d(teacher_channels, 1, 1)
        self.student_transform = _bottleneck(teacher_channels)
        self.teacher_transform = _bottleneck(teacher_channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill the blocks, each the identity at first."""
        for mask in (self.student_mask, self.teacher_mask):
            nn.init.kaiming_normal_(mask.weight, mode="fan_in", nonlinearity="relu")
            nn.init.zeros_(mask.bias)  # type: ignore[arg-type]  # there is one
        for transform in (self.student_transform, self.teacher_transform):
            for parameter in transform[-1].parameters():
                nn.init.zeros_(parameter)

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        boxes: Sequence[Tensor],
        canvas_size: tuple[int, int],
        real_cells: Tensor | None = None,
    ) -> Tensor:
        """Compute the weighted loss; see :meth:`parts` for the arguments.

        Returns:
            A scalar.
        """
        parts = self.parts(student, teacher, boxes, canvas_size, real_cells)
        return torch.stack([self.weights[name] * part for name, part in parts.items()]).sum()

    def parts(
        self,
        student: Tensor,
        teacher: Tensor,
        boxes: Sequence[Tensor],
        canvas_size: tuple[int, int],
        real_cells: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Compute L_fg, L_bg, L_att and L_rel without their weights.

        Args:
            student: ``(batch, C_s, H, W)``.
            teacher: ``(batch, C, H, W)``; it gets no gradient.
            boxes: Of each image, corners xyxy in pixels of the canvas, ``(n, 4)``.
            canvas_size: Height and width in pixels of what the maps cover, padding included.
            real_cells: True for cells that show an image, ``(batch, H, W)``; None: all do.

        Returns:
            Scalars named ``"foreground"``, ``"background"``, ``"attention"`` and ``"relation"``.

        Raises:
            ValueError: If the maps, the boxes and the mask do not fit each other.
        """
        _check_maps(student, teacher, boxes)
        dtype = self.student_mask.weight.dtype
        with torch.autocast(student.device.type, enabled=False):
            student, teacher = student.to(dtype), teacher.detach().to(dtype)
            if self.align is not None:
                student = self.align(student)
            real = _real_cells(real_cells, teacher)
            spatial, channel = attention(teacher, real, self.tau)
            student_spatial, student_channel = attention(student, real, self.tau)
            foreground, background = region_masks(boxes, canvas_size, real, dtype)
            distance = torch.einsum("nchw,nc->nhw", (teacher - student).square(), channel) * spatial
            student_context = _with_context(student, self.student_mask, self.student_transform, real)
            teacher_context = _with_context(teacher, self.teacher_mask, self.teacher_transform, real)
            relation = (student_context - teacher_context).square() * real[:, None]
            sums = {
                "foreground": (foreground * distance).sum(),
                "background": (background * distance).sum(),
                "attention": (student_spatial - spatial).abs().sum() + (student_channel - channel).abs().sum(),
                "relation": relation.sum(),
            }
        return {name: value / len(student) for name, value in sums.items()}


def attention(features: Tensor, real_cells: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Find where and in which channels a map is strong.

    Args:
        features: ``(batch, C, H, W)``.
        real_cells: True for cells that show an image, ``(batch, H, W)``.
        tau: Temperature.

    Returns:
        A^S ``(batch, H, W)``, of mean 1 over real cells and 0 elsewhere, and A^C ``(batch, C)``, of mean 1.
    """
    strength = features.abs() * real_cells[:, None]
    num_real = real_cells.sum(dim=(1, 2))
    spatial = num_real[:, None, None] * _softmax_of_real(strength.mean(dim=1) / tau, real_cells)
    channel_means = strength.sum(dim=(2, 3)) / num_real[:, None]
    return spatial, features.shape[1] * (channel_means / tau).softmax(dim=1)


def region_masks(
    boxes: Sequence[Tensor], canvas_size: tuple[int, int], real_cells: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Weight the cells inside boxes, each box alike and the smallest first, and those outside of all.

    A box covers the cells from the one that its left top corner lies in to the one behind its right bottom corner, as
    in the official code; its size counts cells beyond the border of the map.

    Args:
        boxes: Of each image, corners xyxy in pixels of the canvas, ``(n, 4)``.
        canvas_size: Height and width of the canvas in pixels.
        real_cells: True for cells that show an image, ``(batch, H, W)``.
        dtype: Of the masks.

    Returns:
        M_fg, one over the cells of the smallest box on a cell, and M_bg, one over the number of background cells; both
        ``(batch, H, W)`` and 0 where there is no image.

    Raises:
        ValueError: If boxes are no such corners, or a right bottom corner lies left of or above its left top corner.
    """
    size = real_cells.shape[-2:]
    boxes = _as_corners(boxes)
    nowhere = boxes[0].new_full((1, 4), math.nan)  # covers no cell
    padded = pad_sequence([*boxes, nowhere], batch_first=True, padding_value=math.nan)[:-1]  # (batch, most, 4)
    if bool((padded[..., 2:] < padded[..., :2]).any()):
        raise ValueError(
            "`boxes` must be corners (left, top, right, bottom), got some with right < left or bottom < top."
        )
    inside, lengths = [], []
    for axis, (cells, pixels) in enumerate(zip(size, canvas_size)):
        first = (padded[..., 1 - axis] * cells / pixels).floor()
        last = (padded[..., 3 - axis] * cells / pixels).ceil()
        index = torch.arange(cells, device=padded.device)
        inside.append((first[..., None] <= index) & (index <= last[..., None]))  # (batch, most, cells)
        lengths.append((last - first + 1).float())  # float32 as in the official code
    covered = inside[0][..., :, None] & inside[1][..., None, :]  # (batch, most, H, W)
    weight = 1 / lengths[0] / lengths[1]
    foreground = torch.where(covered, weight[..., None, None], 0.0).amax(dim=1) * real_cells
    background = (real_cells & (foreground == 0)).to(dtype)
    return foreground.to(dtype), background / background.sum(dim=(1, 2), keepdim=True).clamp(min=1)


def _bottleneck(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels // 2, 1),
        nn.LayerNorm([channels // 2, 1, 1]),
        nn.ReLU(),
        nn.Conv2d(channels // 2, channels, 1),
    )


def _with_context(features: Tensor, mask: nn.Module, transform: nn.Module, real_cells: Tensor) -> Tensor:
    """Add to every cell what the whole image shows, R(x), ``(batch, C, H, W)``."""
    weights = _softmax_of_real(mask(features)[:, 0], real_cells)
    context = torch.einsum("nchw,nhw->nc", features, weights)
    return features + transform(context[..., None, None])


def _softmax_of_real(logits: Tensor, real_cells: Tensor) -> Tensor:
    """Softmax over the real cells of each image, 0 elsewhere, ``(batch, H, W)``."""
    return logits.masked_fill(~real_cells, -math.inf).flatten(1).softmax(dim=1).view_as(logits)


def _check_maps(student: Tensor, teacher: Tensor, boxes: Sequence[Tensor]) -> None:
    if student[:, :1].shape != teacher[:, :1].shape:
        raise ValueError(
            "Student and teacher must have maps of one batch, height and width, got "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}. Distil levels of equal strides."
        )
    if len(boxes) != len(student):
        raise ValueError(f"`boxes` must hold one tensor an image, got {len(boxes)} for {len(student)} images.")


def _as_corners(boxes: Sequence[Tensor]) -> list[Tensor]:
    """Check boxes, and make whole numbers and half precision float32."""
    shapes = [tuple(box.shape) for box in boxes]
    if any(len(shape) != 2 or shape[1] != 4 for shape in shapes):
        raise ValueError(f"`boxes` must hold a tensor of the shape (n, 4) for every image, got {shapes}.")
    if not bool(torch.cat([*boxes]).isfinite().all()):
        raise ValueError("`boxes` must be finite, got some with nan or infinity.")
    return [box.to(torch.promote_types(box.dtype, torch.float32)) for box in boxes]


def _real_cells(real_cells: Tensor | None, features: Tensor) -> Tensor:
    shape = (features.shape[0], *features.shape[2:])
    if real_cells is None:
        return torch.ones(shape, dtype=torch.bool, device=features.device)
    if real_cells.shape != shape or not bool(real_cells.any(dim=2).any(dim=1).all()):
        raise ValueError(
            f"`real_cells` must have the shape {shape} and mark at least one cell of every image, got the shape "
            f"{tuple(real_cells.shape)}."
        )
    return real_cells
