"""ViSFT: bit for bit, each stage changes what it should and nothing else."""

import copy
import inspect
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from timm.models.davit import DaVit
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from visft_models import config_with

from tiny_models import random_images, scatter_weights
from transformers_upv2.data.demo_world import WorldSizes, make_world, open_world
from transformers_upv2.model.image_processing_upv2 import UniPerceiverV2ImageProcessor
from transformers_upv2.model.modeling_tasks_upv2 import UniPerceiverV2ForMultiTask
from transformers_upv2.model.processing_upv2 import UniPerceiverV2Processor
from transformers_upv2.training.arguments import UniPerceiverV2TrainingArguments
from transformers_upv2.training.upv2_trainer import UniPerceiverV2Trainer

pytest.importorskip("peft")
from transformers_upv2.training.fused_qkv import SplitProjection, fuse_projections, split_projections
from transformers_upv2.training.visft import STAGE_2_ARGUMENTS, adapt_encoder, freeze_encoder, merge_encoder

RANK = 4
LAYERS = {"swin": "attention", "davit": "attention", "efficientnet": "pointwise"}
BACKBONE = "model.image_encoder.backbone."
QUERY_OF = {"swin": "q_proj.weight", "davit": "qkv.weight", "efficientnet": "conv_pw.weight"}
HEADS = (
    *("image_encoder.proposal_network", "image_encoder.global_tokens", "image_encoder.proposal_tokens"),
    *("image_encoder.pooled_type", "image_encoder.grid_type", "image_encoder.proposal_type"),
    *("text_encoder", "decoder", "likelihood", "spe_token", "text_type"),
)
WITHOUT_PEFT = """
import sys
sys.modules["peft"] = None
sys.path[:0] = sys.argv[1:3]
import torch, visft_models
from transformers_upv2 import UniPerceiverV2ForMultiTask
model, info = UniPerceiverV2ForMultiTask.from_pretrained(sys.argv[3], output_loading_info=True)
print({name: sorted(keys) for name, keys in info.items() if keys})
torch.save(model.state_dict(), sys.argv[4])
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    sizes = WorldSizes(scenes=(4, 1, 1), classification=(13, 12, 12), text=(20, 5, 5))
    return open_world(make_world(tmp_path_factory.mktemp("visft") / "world", 0, sizes, progress=False).root)


@pytest.fixture(scope="module")
def processor(roberta_tokenizer):
    return UniPerceiverV2Processor(UniPerceiverV2ImageProcessor(size={"longest_edge": 64}), roberta_tokenizer)


def build_model(backbone, processor, world):
    torch.manual_seed(0)
    model = UniPerceiverV2ForMultiTask(config_with(backbone, len(processor.tokenizer)))
    model.set_labels(world.class_names, processor.tokenizer, label_set="detection")
    return scatter_weights(model)


def make_trainer(model, processor, world, folder, **options):
    defaults = {"max_steps": 4, "report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}
    defaults |= {"per_device_train_batch_size": 2, "learning_rate": 1e-3, "weight_decay": 0.0, "optimizer": "adamw"}
    defaults |= {"sampling_probabilities": STAGE_2_ARGUMENTS["sampling_probabilities"], "max_text_length": 32}
    arguments = UniPerceiverV2TrainingArguments(output_dir=str(folder), **(defaults | options))
    datasets = {task: world.train[task] for task in ("captioning", "detection")}
    return UniPerceiverV2Trainer(model, arguments, datasets, processing_class=processor)


def train(*args, **options):
    trainer = make_trainer(*args, **options)
    trainer.train()
    steps = trainer.optimizer.param_groups[0]["task_statistics"]
    assert all(counts["steps"] > 0 for counts in steps.values())  # both tasks took part
    return trainer


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(before, after):
    assert list(before) == list(after)
    return {name for name in before if not torch.equal(before[name], after[name])}


@torch.no_grad()
def encode(model):
    return model.eval().model.image_encoder.backbone(random_images(2)).feature_maps


@pytest.fixture(scope="module", params=list(LAYERS))
def run(request, world, processor, tmp_path_factory):
    """Both stages of one model, and its states and outputs on the way."""
    backbone, folder = request.param, tmp_path_factory.mktemp(request.param)
    model = build_model(backbone, processor, world)
    states = {"start": snapshot(model)}
    freeze_encoder(model)
    train(model, processor, world, folder)
    states["stage 1"], outputs = snapshot(model), {"stage 1": encode(model)}
    plain = copy.deepcopy(model)
    split_projections(plain)
    outputs["split"] = encode(plain)
    adapt_encoder(model, RANK, layers=LAYERS[backbone])
    states["adapted"], outputs["adapted"] = snapshot(model), encode(model)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    train(model, processor, world, folder, max_steps=6)
    states["stage 2"], outputs["stage 2"] = snapshot(model), encode(model)
    merge_encoder(model)
    states["merged"], outputs["merged"] = snapshot(model), encode(model)
    return SimpleNamespace(
        backbone=backbone, model=model, states=states, outputs=outputs, trainable=trainable, folder=folder
    )


def test_stage_1_changes_every_head_and_nothing_in_the_encoder(run):
    moved = changed(run.states["start"], run.states["stage 1"])
    assert any(name.startswith(BACKBONE) for name in run.states["start"])
    assert not [name for name in moved if name.startswith(BACKBONE)]
    for head in HEADS:
        assert any(name.startswith(f"model.{head}") for name in moved), head
    assert any("running_mean" in name for name in run.states["start"]) == (run.backbone == "efficientnet")


def test_the_adapted_encoder_begins_as_the_plain_one(run):
    assert all(torch.equal(one, other) for one, other in zip(run.outputs["adapted"], run.outputs["split"]))
    # three matrix products may sum in another order than one
    torch.testing.assert_close(run.outputs["split"], run.outputs["stage 1"], atol=1e-5, rtol=1e-5)


def test_stage_2_changes_lora_and_nothing_else(run):
    adapters = {name for name in run.states["adapted"] if ".lora_" in name}
    assert adapters
    assert all(name.startswith(BACKBONE) for name in adapters)
    assert run.trainable == adapters
    assert changed(run.states["adapted"], run.states["stage 2"]) == adapters
    heads = {name for name in run.states["stage 1"] if not name.startswith(BACKBONE)}
    assert all(torch.equal(run.states["stage 1"][name], run.states["stage 2"][name]) for name in heads)


def test_the_merged_encoder_computes_what_the_adapted_one_did(run):
    for adapted, merged, before in zip(*(run.outputs[name] for name in ("stage 2", "merged", "stage 1"))):
        assert (adapted - merged).abs().max() < 1e-5
        assert (before - merged).abs().max() > 1e-4


def test_merging_changes_the_adapted_rows_alone_by_a_matrix_of_low_rank(run):
    before, after = run.states["stage 1"], run.states["merged"]
    moved = changed(before, after)
    shapes = {name: value.shape for name, value in before.items()}
    assert {name: value.shape for name, value in after.items()} == shapes
    assert any(name.endswith(QUERY_OF[run.backbone]) for name in moved)
    for name in moved:
        assert name.endswith(("q_proj.weight", "v_proj.weight", "qkv.weight")) or shapes[name][2:] == (1, 1), name
        parts = (after[name] - before[name]).flatten(1).split(shapes[name][0] // (3 if "qkv" in name else 1))
        if len(parts) == 3:
            assert parts[1].count_nonzero() == 0  # the keys
        for part in parts[::2]:
            assert 1 <= torch.linalg.matrix_rank(part, rtol=1e-2) <= RANK, name


def test_a_merged_model_trains_and_behaves_like_any_other(run):
    model = copy.deepcopy(run.model)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.train().modules())
    assert not hasattr(model.model.image_encoder.backbone, "peft_config")
    model.save_pretrained(run.folder / "like any other")
    loaded, info = UniPerceiverV2ForMultiTask.from_pretrained(run.folder / "like any other", output_loading_info=True)
    assert not any(info.values())
    assert not changed(run.states["merged"], snapshot(loaded))


@pytest.mark.slow
def test_a_merged_model_is_loaded_without_peft(run):
    run.model.save_pretrained(run.folder / "merged")
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(run.folder / "merged")]
    command = [sys.executable, "-c", WITHOUT_PEFT, *folders, str(run.folder / "state.pt")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "{}"  # nothing missing, unexpected or of another shape
    assert not changed(run.states["merged"], torch.load(run.folder / "state.pt"))


def test_by_default_lora_has_rank_64_and_its_product_counts_a_64th(processor, world):
    model = build_model("davit", processor, world)
    before = snapshot(model)
    adapt_encoder(model)
    state = model.state_dict()
    names = [name for name in state if name.endswith("lora_A.default.weight")]
    assert len(names) == 2 * 8  # q and v of a spatial and a channel attention in four blocks
    updates = {}
    for name in names:
        down, up = state[name], state[name.replace("lora_A", "lora_B")]
        bound = down.shape[1] ** -0.5  # Kaiming, uniform, gain of sqrt(1/3)
        assert down.shape[0] == up.shape[1] == 64
        assert up.count_nonzero() == 0
        assert 0.8 * bound < down.abs().max() <= bound
        up.normal_()
        updates[name.partition(".lora_A")[0]] = up @ down / 64
    merge_encoder(model)
    after = model.state_dict()
    for projection, update in updates.items():
        fused, _, part = projection.rpartition(".")
        row = {"q": 0, "v": 2}[part]
        delta = (after[f"{fused}.weight"] - before[f"{fused}.weight"]).chunk(3)[row]
        torch.testing.assert_close(delta, update, atol=1e-6, rtol=1e-5)


FUSED_ENCODERS = {
    "vit": lambda: VisionTransformer(img_size=32, patch_size=8, embed_dim=12, depth=2, num_heads=2, num_classes=3),
    "swin": lambda: SwinTransformer(
        img_size=32, window_size=4, embed_dim=12, depths=(2, 1), num_heads=(2, 2), num_classes=3
    ),
    "mvitv2": lambda: MultiScaleVit(
        MultiScaleVitCfg(depths=(1, 1), embed_dim=(12, 24), num_heads=(1, 2)), img_size=32, num_classes=3
    ),
    "davit": lambda: DaVit(depths=(1, 1), embed_dims=(12, 24), num_heads=(1, 2), window_size=4, num_classes=3),
}


@pytest.mark.parametrize("name", list(FUSED_ENCODERS))
@torch.no_grad()
def test_fused_projections_are_split_and_fused_again(name):
    encoder = scatter_weights(FUSED_ENCODERS[name]()).eval()
    pixels = random_images(1, 32, 32)
    before, output = snapshot(encoder), encoder(pixels)
    split_projections(encoder)
    split = [module for module in encoder.modules() if isinstance(module, SplitProjection)]
    assert len(split) == sum(key.endswith("qkv.weight") for key in before) > 0
    torch.testing.assert_close(encoder(pixels), output, atol=1e-5, rtol=1e-5)
    fuse_projections(encoder)
    assert not changed(before, snapshot(encoder))
    assert not [module for module in encoder.modules() if isinstance(module, SplitProjection)]


def test_a_projection_without_biases_has_none_afterwards():
    fused = nn.Linear(4, 12, bias=False)
    split = SplitProjection(fused)
    states = torch.randn(2, 4)
    torch.testing.assert_close(split(states), fused(states))
    assert list(split.fuse().state_dict()) == ["weight"]


def test_frozen_parts_stay_in_evaluation_mode_and_the_encoder_trains(processor, world):
    model = build_model("efficientnet", processor, world)
    encoder = model.model.image_encoder
    freeze_encoder(model)
    twin = copy.deepcopy(model).train()
    assert not any(module.training for module in twin.model.image_encoder.backbone.modules())
    assert twin.model.decoder.training
    assert encoder.proposal_network.training
    adapt_encoder(model, RANK, layers="pointwise")
    model.eval().train()
    heads = (model.model.text_encoder, model.model.decoder, encoder.proposal_network, encoder.global_tokens)
    assert not any(module.training for head in heads for module in head.modules())
    norms = [module for module in encoder.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert model.training
    assert model.model.training
    assert encoder.backbone.training


@pytest.mark.slow
def test_stage_2_goes_on_from_a_checkpoint(processor, world, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    models = [build_model("davit", processor, world) for _ in range(2)]
    torch.manual_seed(1)
    adapt_encoder(models[0], RANK)
    train(models[0], processor, world, tmp_path, **options)
    torch.manual_seed(2)
    adapt_encoder(models[1], RANK)
    trainer = make_trainer(models[1], processor, world, tmp_path, **options)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert not changed(snapshot(models[0]), snapshot(models[1]))


def test_the_original_values_fit_the_arguments(tmp_path):
    arguments = UniPerceiverV2TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **STAGE_2_ARGUMENTS)
    tasks = arguments.for_tasks(["captioning", "detection"])
    assert {name: task.sampling_probability for name, task in tasks.items()} == {"captioning": 0.4, "detection": 0.6}
    assert arguments.optimizer == "adamw"
    assert arguments.sampling == "unmixed"


def test_a_backbone_without_such_layers_is_refused_and_left_alone(processor, world):
    model = build_model("efficientnet", processor, world)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"got TimmBackbone with 0 Linears for queries .* `layers='pointwise'`"):
        adapt_encoder(model)
    with pytest.raises(ValueError, match=r"`layers` must be one of \['attention', 'pointwise'\], got 'all'"):
        adapt_encoder(model, layers="all")
    with pytest.raises(ValueError, match="`rank` must be at least 1, got 0"):
        adapt_encoder(model, rank=0)
    assert not changed(before, snapshot(model))
    assert all(parameter.requires_grad for parameter in model.parameters())
    swin = build_model("swin", processor, world)
    with pytest.raises(ValueError, match=r"must have 1x1 convolutions, got SwinBackbone without any"):
        adapt_encoder(swin, layers="pointwise")


@pytest.mark.skipif("test_maxvit" not in timm.list_models(), reason="timm has no small MaxViT yet")
def test_fused_projections_of_an_unknown_layout_are_refused():
    encoder = timm.create_model("test_maxvit")
    before = snapshot(encoder)
    with pytest.raises(ValueError, match=r"`qkv` must belong to one of .* got \['timm\.models\.maxxvit"):
        split_projections(encoder)
    assert not changed(before, snapshot(encoder))


def test_stages_out_of_order_are_refused(processor, world):
    model = build_model("swin", processor, world)
    with pytest.raises(ValueError, match=r"without LoRA\. Call `adapt_encoder` first"):
        merge_encoder(model)
    adapt_encoder(model, RANK)
    for stage in (adapt_encoder, freeze_encoder):
        with pytest.raises(ValueError, match=r"got an adapted one\. Call `merge_encoder` first"):
            stage(model)


def test_the_defaults_are_those_of_the_original():
    defaults = {name: p.default for name, p in inspect.signature(adapt_encoder).parameters.items()}
    assert (defaults["rank"], defaults["alpha"], defaults["layers"]) == (64, 1, "attention")
