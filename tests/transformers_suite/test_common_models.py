"""transformers' ModelTesterMixin over every model class, one test case each; skips are listed in the docs.

The captioning class runs GenerationTesterMixin as well, if the folder of tests has it.
"""

import unittest
from typing import Any

import torch
from generation_checks import GenerationChecks
from model_tester import IMAGE_LENGTH, SWIN, TEXT_LENGTH, TinyModelTester
from suite import load

from transformers_upv2 import (
    UniPerceiverV2ForConditionalGeneration,
    UniPerceiverV2ForImageClassification,
    UniPerceiverV2ForImageTextRetrieval,
    UniPerceiverV2ForInstanceSegmentation,
    UniPerceiverV2ForMaskedLM,
    UniPerceiverV2ForMultiTask,
    UniPerceiverV2ForObjectDetection,
    UniPerceiverV2ForZeroShotImageClassification,
    UniPerceiverV2ForZeroShotObjectDetection,
    UniPerceiverV2Model,
)

common = load("test_modeling_common")

IMAGE = ("pixel_values", "pixel_mask")
TEXT = ("input_ids", "attention_mask")

TIMM_BUFFERS = {
    "test_init_weights_can_init_buffers": "transformers' TimmBackbone does not initialize timm's frozen BatchNorms "
    "again; they are in every checkpoint, and the same test passes with SwinBackbone"
}
SPE_FIRST = {
    "test_get_text_features_output_0": "[SPE] comes before the tokens of the text",
    "test_get_text_features_output_2": "[SPE] comes before the tokens of the text",
}
ASSISTED = ("test_assisted_decoding", "test_prompt_lookup_decoding_matches_greedy_search")


class ModelCase(common.ModelTesterMixin):
    """Facts of all our classes that the mixin asks for."""

    inputs: tuple[str, ...] = IMAGE
    seq_length = IMAGE_LENGTH
    has_loss = True
    backbone_config: dict[str, Any] | None = None
    skips: dict[str, str] = TIMM_BUFFERS
    _is_composite = True
    # the parameters of the other tasks are never reached
    test_all_params_have_gradient = False
    # the features are those of g, as wide as g and not as the backbone
    skip_test_image_features_output_shape = True

    def setUp(self) -> None:
        for name, reason in self.skips.items():
            if name in self._testMethodName:
                self.skipTest(reason)
        self.model_tester = TinyModelTester(self.inputs, self.seq_length, self.has_loss, self.backbone_config)

    @property
    def test_resize_embeddings(self) -> bool:
        """Whether the inputs have token ids; the embeddings are the same in all classes."""
        return "input_ids" in self.inputs

    @property
    def additional_model_inputs(self) -> list[str]:
        """All inputs but the masks, which the mixin would fill with random numbers."""
        return [name for name in self.inputs if not name.endswith("mask")]

    def labels(self) -> Any:
        """Labels of the class, which transformers knows only for its own classes."""
        return None

    def _prepare_for_class(self, inputs_dict: dict, model_class: type, return_labels: bool = False) -> dict:
        inputs = super()._prepare_for_class(inputs_dict, model_class)
        labels = self.labels() if return_labels else None
        return inputs if labels is None else inputs | {"labels": labels}

    def _text_features_prepare_config_and_inputs(self) -> tuple[Any, dict[str, Any]]:
        inputs = self.model_tester.all_inputs()
        return self.model_tester.get_config(), {name: inputs[name] for name in TEXT}

    def _image_features_prepare_config_and_inputs(self) -> tuple[Any, dict[str, Any]]:
        inputs = self.model_tester.all_inputs()
        return self.model_tester.get_config(), {name: inputs[name] for name in IMAGE}


class BaseModelTest(ModelCase, unittest.TestCase):
    all_model_classes = (UniPerceiverV2Model,)
    has_loss = False
    skips = TIMM_BUFFERS | SPE_FIRST


class BaseModelWithSwinTest(ModelCase, unittest.TestCase):
    all_model_classes = (UniPerceiverV2Model,)
    has_loss = False
    backbone_config = SWIN
    skips = SPE_FIRST | {
        "test_capture_outputs_decorator": "SwinBackbone captures its own stages to make the maps, which is nested in "
        "ours and no chain: both sets of states are complete",
        "_bf16_pad_": "proposals are tokens in the order of their score, and bf16 in Swin's own attention swaps "
        "neighbours of this untrained model; fp32 and fp16 agree, and so do the other tokens",
    }


class BaseModelOfTextTest(ModelCase, unittest.TestCase):
    all_model_classes = (UniPerceiverV2Model,)
    has_loss = False
    inputs = TEXT
    seq_length = 1 + TEXT_LENGTH
    skips = (
        TIMM_BUFFERS
        | SPE_FIRST
        | {"test_eager_matches_sdpa_inference": "needs the main input, an image; MaskedLMTest runs it over texts"}
    )


class ImageClassificationTest(ModelCase, unittest.TestCase):
    all_model_classes = (UniPerceiverV2ForImageClassification,)

    def labels(self) -> torch.Tensor:
        return torch.zeros(self.model_tester.batch_size, dtype=torch.long)


class ObjectDetectionTest(ModelCase, unittest.TestCase):
    all_model_classes = (UniPerceiverV2ForObjectDetection,)

    def labels(self) -> list[dict[str, torch.Tensor]] | None:
        # the losses of Mask DINO draw noise and points, so two calls with labels differ
        return None if self._testMethodName == "test_model_outputs_equivalence" else self.model_tester.box_labels()


class InstanceSegmentationTest(ObjectDetectionTest):
    all_model_classes = (UniPerceiverV2ForInstanceSegmentation,)


class ZeroShotImageClassificationTest(ModelCase, unittest.TestCase):
    all_model_classes = (UniPerceiverV2ForZeroShotImageClassification,)
    has_loss = False
    inputs = IMAGE + TEXT


class ZeroShotObjectDetectionTest(ModelCase, unittest.TestCase):
    all_model_classes = (UniPerceiverV2ForZeroShotObjectDetection,)
    has_loss = False
    inputs = IMAGE + TEXT


class ConditionalGenerationTest(GenerationChecks, ModelCase, common.GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (UniPerceiverV2ForConditionalGeneration,)
    inputs = IMAGE + TEXT
    seq_length = IMAGE_LENGTH + TEXT_LENGTH + 1  # the slot of the next word
    skips = (
        TIMM_BUFFERS
        | dict.fromkeys(ASSISTED, "a pass predicts one word, so assisted generation is refused")
        | {
            "test_bc_cache_name_forward": "makes a cache with as many layers as the text encoder, but ours holds "
            "those of the decoder as well; tests/model/test_generation_upv2.py tests the old name",
            "test_generate_without_input_ids": "gives no image either; ours needs one, and nothing else",
            "test_generate_with_quant_cache": "the cache has to be a dynamic one, any other is refused",
        }
    )

    def setUp(self) -> None:
        super().setUp()
        self.model_tester.text_seq_length = TEXT_LENGTH  # of what generate() goes on from

    def labels(self) -> torch.Tensor:
        return self.model_tester.all_inputs()["input_ids"]


class ImageTextRetrievalTest(ModelCase, unittest.TestCase):
    all_model_classes = (UniPerceiverV2ForImageTextRetrieval,)
    inputs = IMAGE + TEXT
    skips = TIMM_BUFFERS | SPE_FIRST


class MaskedLMTest(ModelCase, unittest.TestCase):
    all_model_classes = (UniPerceiverV2ForMaskedLM,)
    inputs = TEXT
    seq_length = 1 + TEXT_LENGTH
    skips = TIMM_BUFFERS | {
        "test_training_gradient_checkpointing": "watches the first layer that can be checkpointed, which is one of "
        "the image encoder; tests/model/test_unified_decoder.py compares the gradients of a text batch"
    }

    def labels(self) -> torch.Tensor:
        ids = self.model_tester.all_inputs()["input_ids"]
        return ids.masked_fill(ids == self.model_tester.get_config().bos_token_id, -100)


class MultiTaskTest(ImageClassificationTest):
    all_model_classes = (UniPerceiverV2ForMultiTask,)
    skips = TIMM_BUFFERS | {
        "test_model_main_input_name": "the task's name comes first, but what a Trainer counts is the image",
        "test_retain_grad_hidden_states_attentions": "in training without labels there is no output at all",
    }

    def _prepare_for_class(self, inputs_dict: dict, model_class: type, return_labels: bool = False) -> dict:
        return {"task": "classification"} | super()._prepare_for_class(inputs_dict, model_class, return_labels)
