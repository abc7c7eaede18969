"""transformers' ImageProcessingTestMixin and ProcessorTesterMixin over our classes; skips are listed in the docs."""

import unittest
from typing import Any

from suite import load
from transformers import RobertaTokenizer

from tiny_models import CLASS_NAMES, TEXTS
from transformers_upv2 import UniPerceiverV2ImageProcessor, UniPerceiverV2Processor
from transformers_upv2.data.world_tokenizer import train_tokenizer

image_common = load("test_image_processing_common")
common = load("test_processing_common")


class TinyImageProcessingTester(image_common.ImageProcessingTester):
    def __init__(self, parent: unittest.TestCase, **kwargs: Any) -> None:
        kwargs.setdefault("size", {"shortest_edge": 18, "longest_edge": 40})
        kwargs.setdefault("size_divisor", 1)
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self) -> dict[str, type]:
        return {"torchvision": UniPerceiverV2ImageProcessor}


class ImageProcessorTest(image_common.ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = TinyImageProcessingTester


class ProcessorTest(common.ProcessorTesterMixin, unittest.TestCase):
    processor_class = UniPerceiverV2Processor

    @classmethod
    def _setup_tokenizer(cls) -> RobertaTokenizer:
        return train_tokenizer(TEXTS + CLASS_NAMES, vocabulary_size=320, max_length=32)

    @classmethod
    def _setup_image_processor(cls) -> UniPerceiverV2ImageProcessor:
        return UniPerceiverV2ImageProcessor(size={"shortest_edge": 32, "longest_edge": 64})
