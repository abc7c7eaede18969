"""What the demo and the tiny checkpoint's training share beside the studies: folders, stages, evaluators."""

from pathlib import Path
from typing import Any

from transformers import GenerationConfig, RobertaTokenizer

from transformers_upv2 import UniPerceiverV2Config, UniPerceiverV2ForMultiTask, UniPerceiverV2Processor
from transformers_upv2.data.demo_world import World
from transformers_upv2.evaluation.captioning import CaptioningEvaluator
from transformers_upv2.evaluation.evaluator import Evaluator
from transformers_upv2.evaluation.retrieval import RetrievalEvaluator
from transformers_upv2.evaluation.suite import default_evaluators
from transformers_upv2.studies.world_model import MAX_CAPTION_TOKENS, build_model

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "runs"
SHIPPED = ROOT / "model_cards" / "uniperceiver-v2-tiny"

# The joint stage. Detection, which starts far ahead, must weigh most or it is destroyed; captions must weigh enough
# for the image side to keep colors.
JOINT: dict[str, Any] = {
    "sampling_probabilities": {
        "detection": 0.44,
        "classification": 0.06,
        "captioning": 0.22,
        "retrieval": 0.2,
        "language_modeling": 0.08,
    },
    "task_weights": {"detection": 6.0, "captioning": 4.0, "retrieval": 3.0, "language_modeling": 2.0},
    "batch_sizes": {
        "detection": 8,
        "classification": 12,
        "captioning": 8,
        "retrieval": 24,
        "language_modeling": 32,
    },
    "adam_beta1": 0.97,
    "adam_beta2": 0.99,
}


# The last stage: the image side is locked and has perceived every image once, so that batches of captions and pairs
# can be large. Detection learns from pixels still, since its regions are matched to objects.
LOCKED: dict[str, Any] = {
    "sampling_probabilities": {
        "detection": 0.16,
        "classification": 0.07,
        "captioning": 0.45,
        "retrieval": 0.25,
        "language_modeling": 0.07,
    },
    "task_weights": {"detection": 4.0, "captioning": 4.0, "retrieval": 4.0, "language_modeling": 2.0},
    "batch_sizes": {
        "detection": 8,
        "classification": 32,
        "captioning": 64,
        "retrieval": 64,
        "language_modeling": 32,
    },
    "adam_beta1": 0.97,
    "adam_beta2": 0.99,
    "lr_multipliers": {},
}

# The demo's short run is that stage as well, with a unified decoder that has learned nothing but text before it.
SHORT: dict[str, Any] = {**LOCKED, "learning_rate": 1e-3, "lr_multipliers": {"model.text_encoder": 0.3}}


def from_encoders_of(folder: Path, world: World) -> tuple[UniPerceiverV2ForMultiTask, UniPerceiverV2Processor]:
    """Build a model whose image and text encoders are a checkpoint's; the unified decoder starts anew."""
    model, processor = build_model(world, RobertaTokenizer.from_pretrained(folder))
    model.model.config.region_loss_weight = UniPerceiverV2Config.from_pretrained(folder).region_loss_weight
    source = UniPerceiverV2ForMultiTask.from_pretrained(folder).model
    model.model.image_encoder.load_state_dict(source.image_encoder.state_dict())
    model.model.text_encoder.load_state_dict(source.text_encoder.state_dict())
    return model, processor


def save_folder(model: UniPerceiverV2ForMultiTask, processor: UniPerceiverV2Processor, out: Path) -> None:
    """Write a complete Hugging Face folder: config, weights, tokenizer, processor, generation options."""
    model.save_pretrained(out)
    processor.save_pretrained(out)
    config = model.config
    GenerationConfig(
        max_new_tokens=MAX_CAPTION_TOKENS,
        bos_token_id=config.bos_token_id,
        pad_token_id=config.pad_token_id,
        eos_token_id=config.eos_token_id,
    ).save_pretrained(out)


def evaluators() -> dict[str, Evaluator]:
    """The default evaluators; in retrieval 300 scenes against 300 captions, the first of each."""
    return default_evaluators() | {
        "captioning": CaptioningEvaluator(max_new_tokens=MAX_CAPTION_TOKENS),
        "retrieval": RetrievalEvaluator(captions_per_image=1),
    }
