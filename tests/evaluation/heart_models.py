"""Datasets and models that answer by heart, so that the right metric is known."""

from types import SimpleNamespace

import torch
from PIL import Image
from torch import nn
from transformers.utils import ModelOutput

CLASS_NAMES = ["circle", "square", "star"]
CATEGORY_IDS = [3, 7, 20]


class ListDataset(list):
    """A map-style dataset with the attributes that readers have."""

    def __init__(self, examples, **attributes):
        super().__init__(examples)
        self.__dict__ |= attributes


class HeartModel(nn.Module):
    """Looks at the gray level of each image, which is its number, and says what it was told.

    `answer(number)` returns the outputs of one image as a dict of tensors.
    """

    def __init__(self, answer, class_names=CLASS_NAMES):
        super().__init__()
        self.answer = answer
        self.config = SimpleNamespace(id2label=dict(enumerate(class_names)))
        self.unused = nn.Linear(1, 1)
        self.frozen = nn.BatchNorm1d(1)
        self.frozen.eval()
        self.saw_training = False
        self.saw_gradients = False

    def forward(self, pixel_values, pixel_mask):
        self.saw_training |= self.training
        self.saw_gradients |= torch.is_grad_enabled()
        answers = [self.answer(number) for number in image_numbers(pixel_values)]
        outputs = {key: torch.stack([answer[key] for answer in answers]) for key in answers[0]}
        return ModelOutput(outputs)


def image_numbers(pixel_values):
    return (pixel_values[:, 0, 0, 0] * 127.5 + 127.5).round().long().tolist()


def gray_image(number, size=(128, 128)):
    return Image.new("RGB", size, (number,) * 3)
