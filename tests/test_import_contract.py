"""What the package takes from transformers beyond its documented surface.

A release that moves or changes one of these fails here, with the name and what we need of it, and not somewhere in the
middle of a training run.
"""

import ast
import importlib
import inspect
import pkgutil

import pytest
import transformers

import transformers_upv2
from source_files import SOURCES

# "module:object" -> the parameters that we pass to it or that it passes to us
SIGNATURES = {
    # model
    "transformers.modeling_utils:ALL_ATTENTION_FUNCTIONS.get_interface": ["attn_implementation", "default"],
    "transformers.modeling_utils:PreTrainedModel._init_weights": ["module"],
    "transformers.modeling_utils:PreTrainedModel.save_pretrained": ["save_directory", "state_dict"],
    "transformers.cache_utils:Cache.update": ["key_states", "value_states", "layer_idx"],
    "transformers.cache_utils:Cache.get_seq_length": ["layer_idx"],
    "transformers.configuration_utils:SubConfigSpec": ["config_class", "model_type", "init_kwargs"],
    "transformers:PreTrainedModel._initialize_weights": ["module", "is_custom_code"],
    "transformers:PreTrainedModel.save_pretrained": ["save_directory", "save_original_format"],
    "transformers:PreTrainedConfig.get_config_dict": ["pretrained_model_name_or_path"],
    "transformers.utils:cached_file": ["path_or_repo_id", "filename"],
    "transformers.initialization:constant_": ["tensor", "val"],
    "transformers.initialization:normal_": ["tensor", "mean", "std"],
    "transformers.initialization:uniform_": ["tensor", "a", "b"],
    "transformers.initialization:zeros_": ["tensor"],
    "transformers.initialization:xavier_uniform_": ["tensor"],
    "transformers.initialization:kaiming_uniform_": ["tensor", "a"],
    "transformers.utils.output_capturing:capture_outputs": ["func", "tie_last_hidden_states"],
    # generation
    "transformers.utils.deprecation:deprecate_kwarg": ["old_name", "version", "new_name"],
    "transformers:GenerationMixin._prepare_generation_config": ["generation_config", "kwargs"],
    "transformers:GenerationMixin._prepare_cache_for_generation": ["generation_config", "model_kwargs"],
    "transformers:GenerationMixin._expand_inputs_for_generation": ["expand_size", "is_encoder_decoder", "input_ids"],
    # processing
    "transformers.image_processing_backends:TorchvisionBackend._preprocess": [
        "images",
        "do_resize",
        "size",
        "resample",
        "do_rescale",
        "rescale_factor",
        "do_normalize",
        "image_mean",
        "image_std",
        "do_pad",
        "pad_size",
        "disable_grouping",
        "return_tensors",
    ],
    "transformers.image_processing_backends:TorchvisionBackend.process_image": ["image", "input_data_format"],
    "transformers.image_processing_backends:TorchvisionBackend.resize": ["image", "size", "resample"],
    "transformers.image_processing_backends:TorchvisionBackend.fetch_images": ["image_url_or_urls"],
    "transformers.image_processing_backends:TorchvisionBackend.rescale_and_normalize": [
        "images",
        "do_rescale",
        "rescale_factor",
        "do_normalize",
        "image_mean",
        "image_std",
    ],
    "transformers.image_transforms:group_images_by_shape": ["images", "disable_grouping"],
    "transformers.image_transforms:reorder_images": ["processed_images", "grouped_images_index"],
    "transformers.image_transforms:get_size_with_aspect_ratio": ["image_size", "size", "max_size"],
    "transformers.image_transforms:convert_to_rgb": ["image", "return_numpy"],
    "transformers.processing_utils:ProcessorMixin._merge_kwargs": ["ModelProcessorKwargs", "tokenizer_init_kwargs"],
    "transformers.processing_utils:ProcessorMixin.validate_inputs": ["images", "text"],
    # pipelines and registration
    "transformers.pipelines:Pipeline._sanitize_parameters": [],
    "transformers.pipelines:Pipeline._forward": ["input_tensors"],
    "transformers.pipelines:Pipeline._prepare_generate_kwargs": ["generate_kwargs"],
    "transformers.pipelines:ZeroShotObjectDetectionPipeline._get_bounding_box": ["box"],
    "transformers:AutoImageProcessor.register": ["config_class", "image_processor_classes", "exist_ok"],
    "transformers:AutoTokenizer.register": ["config_class", "tokenizer_class", "exist_ok"],
    "transformers:AutoProcessor.register": ["config_class", "processor_class", "exist_ok"],
    # training
    "transformers:Trainer.create_optimizer": ["model"],
    "transformers:Trainer.get_train_dataloader": [],
    "transformers:Trainer.training_step": ["model", "inputs", "num_items_in_batch"],
    "transformers:Trainer.compute_loss": ["model", "inputs", "return_outputs", "num_items_in_batch"],
    "transformers:Trainer.evaluate": ["eval_dataset", "ignore_keys", "metric_key_prefix"],
    "transformers:Trainer.log": ["logs", "start_time"],
    "transformers:Trainer.floating_point_ops": ["inputs"],
    "transformers:Trainer._get_grad_norm": ["model", "grad_norm"],
    "transformers:Trainer._get_learning_rate": [],
    "transformers:Trainer._get_output_dir": ["trial"],
    "transformers:Trainer.train": ["resume_from_checkpoint"],
    "transformers:Trainer._load_optimizer_and_scheduler": ["checkpoint"],
    "transformers:Trainer._save_checkpoint": ["model", "trial"],
    "transformers:Trainer._push_from_checkpoint": ["checkpoint_folder"],
    "transformers:Trainer.save_model": ["output_dir", "_internal_call"],
    "transformers.modelcard:TrainingSummary.from_trainer": ["trainer"],
    "transformers:Trainer._issue_warnings_after_load": ["load_result"],
    "transformers:Trainer._save_optimizer_and_scheduler": ["output_dir"],
    "transformers.trainer_utils:sort_checkpoints": ["output_dir"],
    "transformers.trainer_utils:rotate_checkpoints": ["output_dir", "save_total_limit", "best_model_checkpoint"],
}

# "module:object" -> what its value must be an instance of
ATTRIBUTES = {
    "transformers.generation.utils:ALL_CACHE_NAMES": list,
    "transformers.models.auto.modeling_auto:MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES": dict,
    "transformers.models.auto.modeling_auto:MODEL_FOR_IMAGE_SEGMENTATION_MAPPING_NAMES": dict,
    "transformers.modeling_utils:PreTrainedModel._can_compile_fullgraph": bool,
    "transformers.modeling_utils:PreTrainedModel._can_record_outputs": object,
    "transformers.modeling_utils:PreTrainedModel._no_split_modules": object,
    "transformers.modeling_utils:PreTrainedModel._supports_sdpa": bool,
    "transformers.modeling_utils:PreTrainedModel._supports_attention_backend": bool,
    "transformers.configuration_utils:PreTrainedConfig._attn_implementation": property,
    "transformers.modeling_layers:GradientCheckpointingLayer": type,
    "transformers.modeling_layers:GradientCheckpointingLayer.gradient_checkpointing": bool,
    "transformers.pipelines:PIPELINE_REGISTRY.supported_tasks": dict,
    "transformers.pipelines:Pipeline._load_processor": object,
    "transformers.pipelines:Pipeline._load_image_processor": object,
    "transformers.pipelines:Pipeline._load_feature_extractor": object,
    "transformers.pipelines:Pipeline._load_tokenizer": object,
    "transformers.pipelines:Pipeline._pipeline_calls_generate": bool,
    "transformers.pipelines:ImageTextToTextPipeline._default_generation_config": transformers.GenerationConfig,
    "transformers:TrainingArguments._VALID_DICT_FIELDS": list,
    "transformers.trainer:TRAINER_STATE_NAME": str,
    "transformers.trainer_callback:ExportableState": type,
}


def find(place):
    module, _, name = place.partition(":")
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"transformers {transformers.__version__} has no `{place}` any more: {error}")
    return found


@pytest.mark.parametrize(("place", "needed"), SIGNATURES.items(), ids=SIGNATURES)
def test_function_takes_what_we_pass(place, needed):
    parameters = inspect.signature(find(place)).parameters
    missing = [name for name in needed if name not in parameters]
    assert not missing, f"transformers {transformers.__version__}: `{place}` takes {list(parameters)}, not {missing}"


@pytest.mark.parametrize(("place", "kind"), ATTRIBUTES.items(), ids=ATTRIBUTES)
def test_attribute_is_there(place, kind):
    assert isinstance(find(place), kind)


def test_generation_still_calls_the_cache_by_our_name():
    assert "cache" in find("transformers.generation.utils:ALL_CACHE_NAMES")


def test_pipeline_registry_still_has_the_entries_that_we_write():
    for task in ("object-detection", "image-text-to-text", "zero-shot-object-detection"):
        assert {"impl", "pt", "type"} <= find("transformers.pipelines:PIPELINE_REGISTRY.supported_tasks")[task].keys()


def test_every_private_name_that_we_use_is_listed_here():
    """Private names of transformers' classes that our subclasses override, call or set."""
    used = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                used.add(node.attr)
            elif isinstance(node, ast.ClassDef):
                for member in node.body:
                    used |= {target.id for target in getattr(member, "targets", ()) if isinstance(target, ast.Name)}
                    used |= {member.name} if isinstance(member, ast.FunctionDef) else set()
    private = {
        name
        for base in bases_from_transformers()
        for name in vars(base)
        if name.startswith("_") and not name.endswith("__")
    }
    listed = {place.rpartition(".")[2] for place in (*SIGNATURES, *ATTRIBUTES)}
    assert used & private, "nothing was found"
    assert used & private <= listed


def bases_from_transformers():
    for info in pkgutil.walk_packages(transformers_upv2.__path__, "transformers_upv2."):
        module = importlib.import_module(info.name)
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == info.name:
                yield from (base for base in value.__mro__ if base.__module__.startswith("transformers."))
