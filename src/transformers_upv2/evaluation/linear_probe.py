"""How much a linear classifier can read from the backbone: the measure of features on tasks they were not made for."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from transformers_upv2.evaluation.evaluator import image_inputs, prediction_mode
from transformers_upv2.model.image_encoder import image_sizes


def linear_probe(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    train_images: Sequence[Any],
    train_labels: Sequence[int],
    test_images: Sequence[Any],
    test_labels: Sequence[int],
) -> float:
    """Fit a linear classifier to the frozen backbone and test it.

    Args:
        model: Any of our models; it is not changed.
        processor: Its processor.
        train_images: Images to fit the classifier to.
        train_labels: Their classes, numbered from 0.
        test_images: Images to test it on.
        test_labels: Their classes.

    Returns:
        Share of the test images whose class is right.

    Raises:
        ValueError: If images and labels differ in number, or a set is empty.
    """
    for name, images, labels in (("train", train_images, train_labels), ("test", test_images, test_labels)):
        if len(images) != len(labels) or len(images) == 0:
            raise ValueError(
                f"`{name}_labels` must hold one class for each of at least one image, got {len(labels)} for "
                f"{len(images)} images."
            )
    train = backbone_features(model, processor, train_images)
    center, scale = train.mean(dim=0), train.std(dim=0, correction=0)
    scale = torch.where(scale > 0, scale, 1.0)
    weight, bias = fit_logistic_regression((train - center) / scale, torch.tensor(train_labels))
    test = (backbone_features(model, processor, test_images) - center) / scale
    hits = (test @ weight.T + bias).argmax(dim=1) == torch.tensor(test_labels)
    return hits.double().mean().item()


def backbone_features(model: PreTrainedModel, processor: ProcessorMixin, images: Sequence[Any]) -> Tensor:
    """Average the backbone's last map over each image's own canvas.

    Args:
        model: Any of our models.
        processor: Its processor.
        images: Images.

    Returns:
        ``(images, channels)`` in float64, on the CPU.
    """
    encoder: Any = model.base_model.image_encoder
    features = []
    with prediction_mode(model):
        for image in images:
            batch = image_inputs(processor, [{"image": image}], model)
            ((height, width),) = image_sizes(batch["pixel_values"], batch.get("pixel_mask")).tolist()
            rows, columns = encoder.canvas_size(height, width)
            pixels = batch["pixel_values"][..., :height, :width]
            pixels = nn.functional.pad(pixels, (0, columns - width, 0, rows - height))
            last_map = encoder.backbone(pixels).feature_maps[-1]  # (1, channels, rows / 32, columns / 32)
            features.append(last_map.mean(dim=(0, 2, 3)).double().cpu())
    return torch.stack(features)


def fit_logistic_regression(features: Tensor, labels: Tensor, penalty: float = 1.0) -> tuple[Tensor, Tensor]:
    """Minimize the summed cross-entropy plus half the squared weights, times ``penalty``.

    Args:
        features: ``(examples, channels)`` in float64.
        labels: Classes, numbered from 0, ``(examples,)``.
        penalty: On the weights; the bias has none.

    Returns:
        Weights ``(classes, channels)`` and bias ``(classes,)``.
    """
    num_classes = int(labels.max()) + 1
    weight = features.new_zeros(num_classes, features.shape[1], requires_grad=True)
    bias = features.new_zeros(num_classes, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=1000, tolerance_grad=1e-8, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = nn.functional.cross_entropy(features @ weight.T + bias, labels, reduction="sum")
        loss = loss + 0.5 * penalty * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    return weight.detach(), bias.detach()
