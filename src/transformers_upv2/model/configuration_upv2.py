"""Configuration of Uni-Perceiver v2: one main config and one for each part.

A misspelt field is an error here, although transformers would keep it silently.
"""

import dataclasses
import difflib
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME, logging

from .presets import PRESETS
from .tasks import ROUTES

logger = logging.get_logger(__name__)

# Types of fields that a caller may leave out. A type checker only sees what `__post_init__` makes of them.
if TYPE_CHECKING:
    SubConfig = Any
    TokenId = Any
    LabelSets = Any
else:
    SubConfig = dict | PreTrainedConfig | None
    TokenId = int | None
    LabelSets = dict[str, Any] | None

# What the config of an uploaded folder says about the code beside it. The package has registered its own classes and
# forgets this: transformers would refuse the pipelines that are named there unless `trust_remote_code` is given.
_KEYS_OF_UPLOADED_CODE = ("auto_map", "custom_pipelines")
_IS_UPLOADED_CODE = __name__.startswith(f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}.")

# Keys that transformers itself passes to a config beside the declared fields.
_KEYS_OF_TRANSFORMERS = {
    "attn_implementation",
    "auto_map",
    "custom_pipelines",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "per_layer_config",
    "tie_last_hidden_states",
    "tie_word_embeddings",
    "torch_dtype",
    "use_cache",
}


def _refuse_unknown_fields(config: PreTrainedConfig, extra: dict[str, Any]) -> None:
    known = {field.name for field in dataclasses.fields(config)}
    for key in extra:
        if key in _KEYS_OF_TRANSFORMERS or key.startswith("_"):
            continue
        close = difflib.get_close_matches(key, known, n=1)
        hint = f" Did you mean `{close[0]}`?" if close else ""
        raise ValueError(f"{type(config).__name__} has no field `{key}`.{hint} Remove it or correct its name.")


def _refuse_other_labels(label_sets: dict[str, Any], given: dict[str, Any]) -> None:
    asked = {key: given[key] for key in ("num_labels", "id2label", "label2id") if given.get(key) is not None}
    if "id2label" in asked:
        asked["id2label"] = {int(index): name for index, name in asked["id2label"].items()}
    if asked and not any(asked.items() <= _named(labels["names"]).items() for labels in label_sets.values()):
        raise ValueError(
            f"Labels must be those of a label set, {list(label_sets)}, which has the tokens of its names, got "
            f"{asked}. Leave these out, and call `model.set_labels(names, tokenizer)` after loading."
        )


def _named(names: list[str]) -> dict[str, Any]:
    """What transformers calls the labels with these names."""
    numbers = {name: index for index, name in enumerate(names)}
    return {"num_labels": len(names), "id2label": dict(enumerate(names)), "label2id": numbers}


class _StrictFieldsMixin:
    """Refuses fields that the config does not declare."""

    def __post_init__(self, **kwargs: Any) -> None:
        _refuse_unknown_fields(self, kwargs)  # type: ignore[arg-type]
        super().__post_init__(**kwargs)  # type: ignore[misc]

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read a saved config; a field that another version of transformers may know is kept, with a warning."""
        known = _KEYS_OF_TRANSFORMERS.union(field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]
        foreign = {key: value for key, value in config_dict.items() if key not in known and not key.startswith("_")}
        own = {key: value for key, value in config_dict.items() if key not in foreign}
        result = super().from_dict(own, **kwargs)  # type: ignore[misc]
        config = result[0] if isinstance(result, tuple) else result
        for key, value in foreign.items():
            setattr(config, key, value)
        if foreign:
            logger.warning("The saved %s has fields that are not its own: %s.", cls.__name__, sorted(foreign))
        return result


@strict
class UniPerceiverV2ProposalConfig(_StrictFieldsMixin, PreTrainedConfig):
    r"""Numbers of the region proposal network, "similar to Mask DINO" (section 4.1).

    The defaults are Mask DINO's for ResNet-50, with one foreground class and a pixel encoder FFN of 1024.

    Not stated in the paper, chosen here: all of these numbers but the one class, since the paper's Appendix A was not
    at hand.

    Args:
        hidden_size: Width D_p of queries, feature levels and mask features.
        num_feature_levels: Levels that the pixel encoder sees; the coarsest is made by a convolution.
        encoder_layers: Deformable encoder layers of the pixel decoder.
        encoder_ffn_size: Width of their feed-forward networks.
        decoder_layers: Layers of the query decoder.
        decoder_ffn_size: Width of their feed-forward networks.
        num_attention_heads: Heads of every attention.
        num_points: Sampling points per head and level.
        num_queries: Region proposals per image.
        num_classes: 1 is foreground against background (the paper); 80 loads a Mask DINO checkpoint exactly.
        initial_box: How masks become the initial anchors, ``"mask2box"`` or ``"bitmask"``.
        dn_number: Denoising queries in all, at most.
        dn_noise_scale: Relative size of the noise on boxes; half of it is the probability of a flipped label.
        class_weight: Weight of the foreground loss and matching cost.
        bbox_weight: Weight of the L1 distance of boxes.
        giou_weight: Weight of the generalized IoU of boxes.
        mask_weight: Weight of the mask's binary cross-entropy.
        dice_weight: Weight of the mask's dice loss.
        num_loss_points: Points at which a mask loss is evaluated.
        query_position: What a decoder layer knows of a query's place: ``"anchor"``, a code of its newest box (Mask
            DINO); ``"static"``, a code of the first box (DETR); ``"guided"``, the static code and a learned update
            from the newest box (GQPos).
        cross_attention: How queries look at the feature levels: ``"deformable"``, or ``"dense"`` at every cell of
            the levels of stride 16 and more.
        similar_attention: Let the attention maps of coarse levels guide those of finer ones (SiA); only with dense
            cross-attention.
    """

    model_type = "uniperceiver_v2_proposal"
    base_config_key: ClassVar[str] = "proposal_config"

    hidden_size: int = 256
    num_feature_levels: int = 4
    encoder_layers: int = 6
    encoder_ffn_size: int = 1024
    decoder_layers: int = 9
    decoder_ffn_size: int = 2048
    num_attention_heads: int = 8
    num_points: int = 4
    num_queries: int = 300
    num_classes: int = 1
    initial_box: Literal["mask2box", "bitmask"] = "mask2box"
    dn_number: int = 100
    dn_noise_scale: float | int = 0.4
    class_weight: float | int = 4.0
    bbox_weight: float | int = 5.0
    giou_weight: float | int = 2.0
    mask_weight: float | int = 5.0
    dice_weight: float | int = 5.0
    num_loss_points: int = 12544
    query_position: Literal["anchor", "guided", "static"] = "anchor"
    cross_attention: Literal["deformable", "dense"] = "deformable"
    similar_attention: bool = False

    def validate_architecture(self) -> None:
        """Check what the fields must hold together."""
        if self.similar_attention and self.cross_attention != "dense":
            raise ValueError(
                "`similar_attention` fuses attention maps, which only `cross_attention='dense'` has, got "
                f"{self.cross_attention!r}. Use dense cross-attention, or leave SiA off."
            )


@strict
class UniPerceiverV2DecoderConfig(_StrictFieldsMixin, PreTrainedConfig):
    r"""Numbers of the unified decoder g: "BERT-base but 6 layers" (section 5.2), Conditional MoE in every FFN.

    Not stated in the paper, chosen here: pre-LN, drop path 0.1, 8 experts, 2 of them a token group
    (inherited from Uni-Perceiver-MoE).

    Args:
        hidden_size: Width D of the decoder's tokens.
        num_hidden_layers: Transformer layers.
        num_attention_heads: Heads of the self-attention.
        intermediate_size: Width of the feed-forward networks.
        drop_path: Probability that a training sample skips a residual branch.
        layer_norm_eps: Epsilon of every LayerNorm.
        num_experts: Weight sets that each Linear of a feed-forward network holds.
        num_experts_per_group: Experts that are merged for one token group.
        merged_routes: Routes of a merged (deployed) model; each then has one dense FFN. None: the experts.
    """

    model_type = "uniperceiver_v2_decoder"
    base_config_key: ClassVar[str] = "decoder_config"

    hidden_size: int = 768
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    drop_path: float | int = 0.1
    layer_norm_eps: float | int = 1e-5
    num_experts: int = 8
    num_experts_per_group: int = 2
    merged_routes: list[str] | None = None

    def validate_architecture(self) -> None:
        """Check what the fields must hold together."""
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                "`hidden_size` must be a multiple of `num_attention_heads`, got "
                f"{self.hidden_size} and {self.num_attention_heads}."
            )
        if self.num_experts_per_group > self.num_experts:
            raise ValueError(
                "`num_experts_per_group` must not exceed `num_experts`, got "
                f"{self.num_experts_per_group} and {self.num_experts}."
            )
        for route in self.merged_routes or ():
            if route not in ROUTES:
                raise ValueError(f"`merged_routes` must hold names of {sorted(ROUTES)}, got {route!r}.")


@strict
class UniPerceiverV2Config(_StrictFieldsMixin, PreTrainedConfig):
    r"""Configuration of a whole Uni-Perceiver v2 model.

    Not stated in the paper, chosen here: the number of attention pools, the number of proposal tokens, the
    temperatures per family, the focal detection score, label smoothing and the sampled vocabulary.

    Args:
        backbone_config: Any backbone of transformers with maps at strides 4, 8, 16 and 32.
        text_config: Text encoder f_text (Eq. 4), RoBERTa by default.
        proposal_config: Region proposal network.
        decoder_config: Unified decoder g.
        num_attention_pools: M' of Eq. 3.
        num_proposals: N, the proposal tokens that enter g, in every task.
        pooled_mask_size: Side of the pooled mask of Eq. 2.
        image_representation: What g sees of an image (the paper's Table 2): ``"both"``, only the ``"global"`` tokens
            or only the ``"regional"`` ones, the proposals. The others are masked; a proposal that only asks about
            itself, as in detection, still can.
        size_divisor: An image's own canvas is its size rounded up to this.
        detection_score: ``"focal"``: a sigmoid per label, so that no score depends on the other labels.
            ``"softmax"``: Eq. 7 on matched proposals; score = foreground probability times softmax.
        initial_temperature: Initial τ (`temperature` is a generation option in transformers).
        share_temperature: One τ for all tasks, as the paper writes, instead of one per family.
        max_logit_scale: Upper bound of 1/τ.
        label_smoothing: Of classification and retrieval.
        gather_negatives: Retrieval compares the pairs of all processes (section 4.4); else each process its own.
        region_loss_weight: Weight of the class losses of proposals beside the proposal network's own losses.
        proposal_loss_weight: Weight of the proposal network's losses.
        vocabulary_sample_size: Vocabulary candidates of a training step beside the batch's own words; a vocabulary
            that is not larger is used whole.
        label_sets: ``{name: {"names": [str], "token_ids": [[[int]]]}}``: of every label its name and one or
            more token id lists (templates, synonyms), whose embeddings are averaged.
    """

    model_type = "uniperceiver_v2"
    keys_to_ignore_at_inference = ["past_key_values", "image_encoding"]
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "backbone_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="timm_backbone",
            init_kwargs=PRESETS["resnet50"]["backbone_config"],
        ),
        "text_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="roberta",
            init_kwargs=PRESETS["resnet50"]["text_config"],
        ),
        "proposal_config": SubConfigSpec(config_class=UniPerceiverV2ProposalConfig),
        "decoder_config": SubConfigSpec(config_class=UniPerceiverV2DecoderConfig),
    }

    backbone_config: SubConfig = None
    text_config: SubConfig = None
    proposal_config: SubConfig = None
    decoder_config: SubConfig = None
    num_attention_pools: int = 10
    num_proposals: int = 200
    pooled_mask_size: int = 28
    image_representation: Literal["both", "global", "regional"] = "both"
    size_divisor: int = 32
    detection_score: Literal["focal", "softmax"] = "focal"
    initial_temperature: float | int = 0.07
    share_temperature: bool = False
    max_logit_scale: float | int = 100.0
    label_smoothing: float | int = 0.1
    gather_negatives: bool = True
    region_loss_weight: float | int = 4.0
    proposal_loss_weight: float | int = 1.0
    vocabulary_sample_size: int = 2048
    initializer_range: float | int = 0.02
    label_sets: LabelSets = None
    bos_token_id: TokenId = 0
    pad_token_id: TokenId = 1
    eos_token_id: TokenId = 2
    unk_token_id: TokenId = 3
    mask_token_id: TokenId = None

    def __post_init__(self, **kwargs: Any) -> None:
        if not _IS_UPLOADED_CODE:
            kwargs = {key: value for key, value in kwargs.items() if key not in _KEYS_OF_UPLOADED_CODE}
        super().__post_init__(**kwargs)
        if self.label_sets is None:
            self.label_sets = {}
        if self.mask_token_id is None:  # RoBERTa's `<mask>` is the vocabulary's last entry
            self.mask_token_id = self.text_config.vocab_size - 1

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read a saved config; labels that the caller gives must be those of a label set.

        Raises:
            ValueError: If they are others, which no label set has the tokens of.
        """
        _refuse_other_labels(config_dict.get("label_sets") or {}, kwargs)
        return super().from_dict(config_dict, **kwargs)

    def validate_architecture(self) -> None:
        """Check what the fields must hold together."""
        if self.num_proposals > self.proposal_config.num_queries:
            raise ValueError(
                "`num_proposals` must not exceed `proposal_config.num_queries`, got "
                f"{self.num_proposals} and {self.proposal_config.num_queries}."
            )
        for name, labels in self.label_sets.items():
            if len(labels.get("names", ())) != len(labels.get("token_ids", ())):
                raise ValueError(
                    f"`label_sets[{name!r}]` must hold as many `token_ids` as `names`, got "
                    f"{len(labels.get('token_ids', ()))} and {len(labels.get('names', ()))}."
                )

    @property
    def hidden_size(self) -> int:
        """Width D of the decoder's tokens and of every embedding."""
        return self.decoder_config.hidden_size

    @property
    def vocab_size(self) -> int:
        """Entries of the text encoder's vocabulary."""
        return self.text_config.vocab_size

    @vocab_size.setter
    def vocab_size(self, value: int) -> None:
        self.text_config.vocab_size = value

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "UniPerceiverV2Config":
        """Make the config of a named preset.

        Args:
            name: One of ``"tiny"``, ``"resnet50"``, ``"swin-base"``, ``"swin-large"``.
            **overrides: Fields of this class; a dict for a part replaces single fields of that part.

        Returns:
            A new config; nothing is downloaded.

        Raises:
            ValueError: If there is no such preset or no such field.
        """
        if name not in PRESETS:
            raise ValueError(f"`name` must be one of {sorted(PRESETS)}, got {name!r}.")
        fields = dict(PRESETS[name])
        for key, value in overrides.items():
            part = fields.get(key)
            if isinstance(value, dict) and isinstance(part, dict) and key.endswith("_config"):
                value = {**part, **value}
            fields[key] = value
        return cls(**fields)
