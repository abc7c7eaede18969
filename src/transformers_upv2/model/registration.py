"""Tell transformers about our classes, since it finds no plugins by itself.

After `register`, every ``AutoModelFor...``, ``AutoProcessor`` and ``pipeline(task, model=folder)``
works with our folders, and nothing changes for other models.
"""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForImageSegmentation,
    AutoModelForImageTextToText,
    AutoModelForInstanceSegmentation,
    AutoModelForMaskedLM,
    AutoModelForObjectDetection,
    AutoModelForZeroShotImageClassification,
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
    AutoTokenizer,
)
from transformers.models.auto import modeling_auto
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_upv2 import UniPerceiverV2Config
from .generation_upv2 import UniPerceiverV2ForConditionalGeneration
from .image_processing_upv2 import UniPerceiverV2ImageProcessor
from .modeling_tasks_upv2 import (
    UniPerceiverV2ForImageClassification,
    UniPerceiverV2ForImageTextRetrieval,
    UniPerceiverV2ForInstanceSegmentation,
    UniPerceiverV2ForMaskedLM,
    UniPerceiverV2ForObjectDetection,
    UniPerceiverV2ForZeroShotImageClassification,
    UniPerceiverV2ForZeroShotObjectDetection,
)
from .modeling_upv2 import UniPerceiverV2Model
from .pipelines_upv2 import (
    ImageCaptioningPipeline,
    UniPerceiverV2ImageTextToTextPipeline,
    UniPerceiverV2ObjectDetectionPipeline,
    UniPerceiverV2ZeroShotObjectDetectionPipeline,
)
from .processing_upv2 import UniPerceiverV2Processor
from .retrieval_pipeline_upv2 import ImageTextRetrievalPipeline
from .tokenizer_upv2 import FolderTokenizer

MODELS = {
    AutoModel: UniPerceiverV2Model,
    AutoModelForImageClassification: UniPerceiverV2ForImageClassification,
    AutoModelForImageSegmentation: UniPerceiverV2ForInstanceSegmentation,
    AutoModelForImageTextToText: UniPerceiverV2ForConditionalGeneration,
    AutoModelForInstanceSegmentation: UniPerceiverV2ForInstanceSegmentation,
    AutoModelForMaskedLM: UniPerceiverV2ForMaskedLM,
    AutoModelForObjectDetection: UniPerceiverV2ForObjectDetection,
    AutoModelForZeroShotImageClassification: UniPerceiverV2ForZeroShotImageClassification,
    AutoModelForZeroShotObjectDetection: UniPerceiverV2ForZeroShotObjectDetection,
}

STOCK_PIPELINES = {
    "object-detection": UniPerceiverV2ObjectDetectionPipeline,
    "image-text-to-text": UniPerceiverV2ImageTextToTextPipeline,
    "zero-shot-object-detection": UniPerceiverV2ZeroShotObjectDetectionPipeline,
}

OWN_PIPELINES = {
    "image-captioning": (ImageCaptioningPipeline, UniPerceiverV2ForConditionalGeneration),
    "image-text-retrieval": (ImageTextRetrievalPipeline, UniPerceiverV2ForImageTextRetrieval),
}


def register() -> None:
    """Register configuration, models, processors and pipelines; doing it again changes nothing."""
    AutoConfig.register(UniPerceiverV2Config.model_type, UniPerceiverV2Config, exist_ok=True)
    for auto_class, model_class in MODELS.items():
        auto_class.register(UniPerceiverV2Config, model_class, exist_ok=True)
    AutoImageProcessor.register(
        UniPerceiverV2Config,
        image_processor_classes={"torchvision": UniPerceiverV2ImageProcessor},
        exist_ok=True,
    )
    AutoTokenizer.register(UniPerceiverV2Config, tokenizer_class=FolderTokenizer, exist_ok=True)
    AutoProcessor.register(UniPerceiverV2Config, UniPerceiverV2Processor, exist_ok=True)
    _name_models_for_pipelines()
    _register_pipelines()


def _name_models_for_pipelines() -> None:
    """Enter the two tables of names by which stock pipelines would report us as unsupported."""
    model_type = UniPerceiverV2Config.model_type
    modeling_auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES[model_type] = UniPerceiverV2ForObjectDetection.__name__
    modeling_auto.MODEL_FOR_IMAGE_SEGMENTATION_MAPPING_NAMES[model_type] = (
        UniPerceiverV2ForInstanceSegmentation.__name__
    )


def _register_pipelines() -> None:
    """Enter the pipelines into the registry itself.

    ``register_pipeline`` would warn about each stock task, and would make ``save_pretrained`` write
    ``custom_pipelines`` into the config, with which the folder refuses to load.
    """
    tasks = PIPELINE_REGISTRY.supported_tasks
    for task, pipeline_class in STOCK_PIPELINES.items():
        tasks[task] = {**tasks[task], "impl": pipeline_class}
    for task, (pipeline_class, model_class) in OWN_PIPELINES.items():
        tasks[task] = {"impl": pipeline_class, "pt": (model_class,), "type": "multimodal"}
