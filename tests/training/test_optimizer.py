"""TaskBalancedAdamW against a float64 loop, torch's AdamW and its own promises."""

import copy
import io
import math
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTModel,
)

from transformers_upv2.model.image_tokens import AttentionPools
from transformers_upv2.training.optimizer import TaskBalancedAdamW, parameter_groups
from transformers_upv2.training.sampler import UnmixedTaskSampler

PROBABILITIES = {"a": 0.5, "b": 0.3, "c": 0.2}
WEIGHTS = {"a": 1.0, "b": 3.0, "c": 0.25}


def make_params(dtype=torch.float64, shapes=((3, 4), (5,), (2, 2, 2), ())):
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in shapes]


def set_gradients(params, step, task, scale=1.0):
    """Give some parameters a gradient; which ones depends on the task."""
    generator = torch.Generator().manual_seed(step)
    for number, parameter in enumerate(params):
        gradient = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale
        parameter.grad = None if number % 3 == ord(task) % 3 else gradient.to(parameter.dtype)


def reference_step(theta, m, n, gradients, step, task, lr, betas, eps, decay):
    """The equations of the module's docstring, one number at a time."""
    norm = math.sqrt(sum(x * x for x in gradients))
    correction = [1 - beta**step for beta in betas]
    for i, raw in enumerate(gradients):
        g = WEIGHTS[task] * raw / norm if norm > 0 else 0.0
        m[i] = betas[0] * m[i] + (1 - betas[0]) / PROBABILITIES[task] * g
        n[i] = betas[1] * n[i] + (1 - betas[1]) / PROBABILITIES[task] * g * g
        theta[i] -= lr * decay * theta[i]
        theta[i] -= lr * (m[i] / correction[0]) / (math.sqrt(n[i] / correction[1]) + eps)


def test_equals_the_equations_over_200_steps():
    params = make_params()
    options = {"lr": 3e-3, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
    optimizer = TaskBalancedAdamW(params, sampling_probabilities=PROBABILITIES, task_weights=WEIGHTS, **options)
    sampler = UnmixedTaskSampler(PROBABILITIES, seed=4)
    theta = torch.cat([p.detach().reshape(-1) for p in params]).tolist()
    m, n = [0.0] * len(theta), [0.0] * len(theta)
    for step in range(200):
        task = sampler.task_at(step)
        set_gradients(params, step, task, scale=0.0 if step % 50 == 7 else 10.0 ** (step % 5))
        flat = [x for p in params for x in (torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1).tolist()]
        reference_step(theta, m, n, flat, step + 1, task, 3e-3, (0.9, 0.99), 1e-8, 0.1)
        optimizer.begin_step(task)
        optimizer.step()
    result = torch.cat([p.detach().reshape(-1) for p in params])
    torch.testing.assert_close(result, torch.tensor(theta, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    assert sum(s["steps"] for s in optimizer.param_groups[0]["task_statistics"].values()) == 200


def test_without_normalization_it_is_adamw():
    params = make_params()
    twins = copy.deepcopy(params)
    options = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.05}
    ours = TaskBalancedAdamW(params, sampling_probabilities={"all": 1.0}, normalize=False, **options)
    theirs = torch.optim.AdamW(twins, **options)
    for step in range(50):
        set_gradients(params, step, "a")
        for ours_p, theirs_p in zip(params, twins, strict=True):
            if ours_p.grad is None:  # torch skips the parameter, we count its gradient as zero
                ours_p.grad = torch.zeros_like(ours_p)
            theirs_p.grad = ours_p.grad.clone()
        ours.begin_step("all")
        ours.step()
        theirs.step()
    for ours_p, theirs_p in zip(params, twins, strict=True):
        torch.testing.assert_close(ours_p, theirs_p, rtol=1e-12, atol=1e-12)


def run(scales, dtype=torch.float64, none_as_zero=False, steps=60):
    params = make_params(dtype)
    optimizer = TaskBalancedAdamW(params, lr=1e-2, sampling_probabilities=PROBABILITIES)
    sampler = UnmixedTaskSampler(PROBABILITIES)
    for step in range(steps):
        task = sampler.task_at(step)
        set_gradients(params, step, task, scales[task])
        for p in params if none_as_zero else ():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        optimizer.begin_step(task)
        optimizer.step()
    return params


def test_the_scale_of_a_loss_changes_nothing():
    plain = run({"a": 1.0, "b": 1.0, "c": 1.0})
    scaled = run({"a": 1e4, "b": 1e-6, "c": 7.0})
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_a_missing_gradient_is_a_zero():
    scales = {"a": 1.0, "b": 1.0, "c": 1.0}
    for one, other in zip(run(scales), run(scales, none_as_zero=True), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_rare_task_moves_its_own_parameters_as_much():
    """Each task has one parameter of its own and pushes it with a constant gradient and noise."""
    probabilities = {"often": 0.9, "rare": 0.1}
    params = {task: nn.Parameter(torch.zeros(200, dtype=torch.float64)) for task in probabilities}
    optimizer = TaskBalancedAdamW(
        list(params.values()), lr=1e-3, weight_decay=0.0, sampling_probabilities=probabilities
    )
    sampler = UnmixedTaskSampler(probabilities, seed=1)
    generator = torch.Generator().manual_seed(0)
    for step in range(4000):
        task = sampler.task_at(step)
        optimizer.zero_grad()
        params[task].grad = 1 + torch.randn(200, generator=generator, dtype=torch.float64)
        optimizer.begin_step(task)
        optimizer.step()
    often, rare = (params[task].detach().mean().item() for task in probabilities)
    assert 0.85 < rare / often < 1.15  # skipping unused parameters would give about 0.33


def test_a_gradient_of_zero_counts_and_lets_the_moments_decay():
    params = make_params()
    optimizer = TaskBalancedAdamW(params, sampling_probabilities={"a": 1.0}, betas=(0.5, 0.9))
    set_gradients(params, 0, "b")
    optimizer.begin_step("a")
    optimizer.step()
    before = {p: {k: v.clone() for k, v in optimizer.state[p].items()} for p in params}
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.begin_step("a")
    optimizer.step()
    for p in params:
        torch.testing.assert_close(optimizer.state[p]["exp_avg"], before[p]["exp_avg"] * 0.5)
        torch.testing.assert_close(optimizer.state[p]["exp_avg_sq"], before[p]["exp_avg_sq"] * 0.9)
    assert optimizer.param_groups[0]["task_statistics"]["a"]["steps"] == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing_but_a_count(bad):
    params = make_params()
    optimizer = TaskBalancedAdamW(params, sampling_probabilities=PROBABILITIES)
    set_gradients(params, 0, "a")
    optimizer.begin_step("a")
    optimizer.step()
    weights = [p.detach().clone() for p in params]
    state = copy.deepcopy(optimizer.state_dict()["state"])
    set_gradients(params, 1, "b")
    next(p for p in params if p.grad is not None).grad.view(-1)[0] = bad
    optimizer.begin_step("b")
    optimizer.step()
    assert all(torch.equal(p, w) for p, w in zip(params, weights, strict=True))
    for number, moments in optimizer.state_dict()["state"].items():
        assert all(torch.equal(moments[k], state[number][k]) for k in moments)
    statistics = optimizer.param_groups[0]["task_statistics"]
    assert statistics["b"]["skipped_steps"] == 1
    assert statistics["b"]["steps"] == 0
    assert optimizer.param_groups[0]["step"] == 1
    with pytest.raises(RuntimeError, match="begin_step"):
        optimizer.step()


def test_short_gradients_are_not_blown_up_beyond_min_norm():
    parameter = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    optimizer = TaskBalancedAdamW([parameter], sampling_probabilities={"a": 1.0}, betas=(0.0, 0.999), min_norm=10.0)
    parameter.grad = torch.full((4,), 0.5, dtype=torch.float64)  # of norm 1
    optimizer.begin_step("a")
    optimizer.step()
    torch.testing.assert_close(optimizer.state[parameter]["exp_avg"], parameter.grad / 10)


def test_state_survives_a_safe_load():
    def train(params, optimizer, steps):
        for step in steps:
            task = "abc"[step % 3]
            set_gradients(params, step, task)
            optimizer.begin_step(task)
            optimizer.step()

    params = make_params(torch.float32)
    optimizer = TaskBalancedAdamW(params, sampling_probabilities=PROBABILITIES)
    train(params, optimizer, range(6))
    file = io.BytesIO()
    torch.save({"weights": list(params), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    twins = [nn.Parameter(p.detach().clone()) for p in loaded["weights"]]
    twin = TaskBalancedAdamW(twins, sampling_probabilities=PROBABILITIES)
    twin.load_state_dict(loaded["optimizer"])
    assert twin.param_groups[0]["task_statistics"] == optimizer.param_groups[0]["task_statistics"]
    train(params, optimizer, range(6, 12))
    train(twins, twin, range(6, 12))
    assert all(torch.equal(p, t) for p, t in zip(params, twins, strict=True))


def test_a_task_that_a_loaded_state_does_not_know_begins_at_zero():
    params = make_params()
    old = TaskBalancedAdamW(params, sampling_probabilities={"a": 0.5, "b": 0.5})
    new = TaskBalancedAdamW(params, sampling_probabilities=PROBABILITIES)
    for step, (optimizer, task) in enumerate([(old, "a"), (old, "b"), (new, "c")]):
        if optimizer is new:
            new.load_state_dict(old.state_dict())
        set_gradients(params, step, task)
        optimizer.begin_step(task)
        optimizer.step()
    statistics = new.param_groups[0]["task_statistics"]
    assert {task: each["steps"] for task, each in statistics.items()} == {"a": 1, "b": 1, "c": 1}
    assert statistics["c"]["norm_sum"] == statistics["c"]["last_norm"] > 0


def test_it_keeps_two_moments_and_nothing_else():
    params = make_params()
    optimizer = TaskBalancedAdamW(params, sampling_probabilities=PROBABILITIES)
    set_gradients(params, 0, "a")
    optimizer.begin_step("a")
    optimizer.step()
    for p in params:
        assert sum(value.numel() for value in optimizer.state[p].values()) == 2 * p.numel()


def test_grad_scaler_changes_nothing_and_a_skipped_step_forgets_its_task():
    params = make_params(torch.float32)
    twins = copy.deepcopy(params)
    optimizer = TaskBalancedAdamW(params, sampling_probabilities=PROBABILITIES)
    plain = TaskBalancedAdamW(twins, sampling_probabilities=PROBABILITIES)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(5):
        task = "abc"[step % 3]
        set_gradients(params, step, task)
        set_gradients(twins, step, task)
        for p in params:
            if p.grad is not None:
                scaler.scale(torch.zeros(()))  # GradScaler makes its scale on first use
                p.grad *= scaler.get_scale()
        overflows = step == 2
        if overflows:
            next(p for p in params if p.grad is not None).grad.view(-1)[0] = math.inf
        optimizer.begin_step(task)
        scaler.step(optimizer)
        scaler.update()
        assert optimizer.param_groups[0]["task"] is None
        if not overflows:
            plain.begin_step(task)
            plain.step()
    for p, twin in zip(params, twins, strict=True):
        torch.testing.assert_close(p, twin, rtol=1e-6, atol=1e-7)
    ours, theirs = (o.param_groups[0]["task_statistics"] for o in (optimizer, plain))
    assert ours["c"]["skipped_steps"] == 1
    assert scaler.get_scale() == 512.0
    for task in "ab":
        assert ours[task]["norm_sum"] == pytest.approx(theirs[task]["norm_sum"], rel=1e-6)


def test_bf16_norm_is_computed_in_fp32():
    parameter = nn.Parameter(torch.zeros(1000, dtype=torch.bfloat16))
    parameter.grad = torch.full((1000,), 1.0, dtype=torch.bfloat16)
    optimizer = TaskBalancedAdamW([parameter], sampling_probabilities={"a": 1.0})
    optimizer.begin_step("a")
    optimizer.step()
    norm = optimizer.param_groups[0]["task_statistics"]["a"]["last_norm"]
    assert norm == pytest.approx(math.sqrt(1000), rel=1e-6)


def test_a_copy_knows_its_tasks():
    optimizer = copy.deepcopy(TaskBalancedAdamW(make_params(), sampling_probabilities=PROBABILITIES))
    optimizer.begin_step("b")
    assert optimizer.sampling_probabilities == PROBABILITIES


def test_steps_need_a_known_task():
    params = make_params()
    optimizer = TaskBalancedAdamW(params, sampling_probabilities=PROBABILITIES)
    with pytest.raises(RuntimeError, match=r"got \[None\].*begin_step"):
        optimizer.step()
    with pytest.raises(ValueError, match=r"one of \['a', 'b', 'c'\], got 'd'"):
        optimizer.begin_step("d")
    groups = [{"params": params[:1]}, {"params": params[1:]}]
    optimizer = TaskBalancedAdamW(groups, sampling_probabilities=PROBABILITIES)
    optimizer.param_groups[0]["task"] = "a"
    with pytest.raises(RuntimeError, match=r"got \['a', None\]"):
        optimizer.step()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": -1.0}, "`lr` must not be negative, got -1.0"),
        ({"betas": (0.9, 1.0)}, r"`betas` must lie in \[0, 1\), got \(0.9, 1.0\)"),
        ({"sampling_probabilities": {}}, "at least one task"),
        ({"sampling_probabilities": {"a": 1.5}}, "got 1.5 for task 'a'"),
        ({"task_weights": {"z": 1.0}}, r"\['a', 'b', 'c'\], got \['z'\]"),
        ({"task_weights": {"a": -1.0}}, "got -1.0 for task 'a'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        TaskBalancedAdamW(make_params(), **({"sampling_probabilities": PROBABILITIES} | arguments))


def test_warns_when_the_second_moment_forgets_a_rare_task():
    probabilities = {"a": 0.95, "b": 0.05}
    with pytest.warns(UserWarning, match=r"10 steps \(beta2 = 0.9\), but the rarest task comes every 20"):
        TaskBalancedAdamW(make_params(), betas=(0.9, 0.9), sampling_probabilities=probabilities)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TaskBalancedAdamW(make_params(), betas=(0.9, 0.95), sampling_probabilities=probabilities)


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.text = nn.ModuleDict({"word_embeddings": nn.Embedding(5, 4), "dense": nn.Linear(4, 4)})
        self.gate = nn.Linear(4, 4)
        self.level_embedding = nn.Parameter(torch.zeros(2, 4))
        self.expert_bias = nn.Parameter(torch.zeros(2, 4))
        self.log_logit_scale = nn.ParameterDict({"pairs": nn.Parameter(torch.zeros(1, 1))})
        self.frozen = nn.Parameter(torch.zeros(3, 3), requires_grad=False)


def test_groups_partition_the_trainable_parameters():
    model = Parts()
    groups = parameter_groups(model, 1.0, 0.1, {"backbone": 0.1, "backbone.1": 0.5, "text": 0.2})
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found == {
        "backbone.0.weight": (0.1, 0.1),
        "backbone.0.bias": (0.1, 0.0),
        "backbone.1.weight": (0.5, 0.0),
        "backbone.1.bias": (0.5, 0.0),
        "text.word_embeddings.weight": (0.2, 0.0),
        "text.dense.weight": (0.2, 0.1),
        "text.dense.bias": (0.2, 0.0),
        "gate.weight": (1.0, 0.0),
        "gate.bias": (1.0, 0.0),
        "level_embedding": (1.0, 0.0),
        "expert_bias": (1.0, 0.0),
        "log_logit_scale.pairs": (1.0, 0.0),
    }
    assert sum(len(g["params"]) for g in groups) == len(found)


def undecayed_names(model):
    groups = parameter_groups(model, 1.0, 0.1)
    undecayed = {id(p) for group in groups if not group["weight_decay"] for p in group["params"]}
    return {name for name, p in model.named_parameters() if id(p) in undecayed}


SMALL_SWIN = {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 1)}


@pytest.mark.parametrize(
    ("name", "options"), [("test_vit", {}), ("swin_tiny_patch4_window7_224", SMALL_SWIN), ("levit_128s", {})]
)
def test_what_a_model_of_timm_exempts_is_not_decayed(name, options):
    model = nn.ModuleDict({"backbone": timm.create_model(name, **options)})
    exempt = {f"backbone.{each}" for each in model["backbone"].no_weight_decay()} & set(dict(model.named_parameters()))
    assert exempt
    assert exempt <= undecayed_names(model)


def test_layers_of_other_libraries_are_decayed_and_their_tokens_not():
    """Those that transformers' models have, under the names that it gives to them."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    vit = ViTModel(ViTConfig(image_size=32, **sizes), use_mask_token=True, add_pooling_layer=False)
    registers = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(image_size=32, **sizes))
    swin = SwinModel(SwinConfig(embed_dim=8, depths=[1], num_heads=[2], image_size=32), add_pooling_layer=False)
    for model in (vit, registers, swin):
        undecayed = undecayed_names(model)
        matrices = {name for name, p in model.named_parameters() if p.ndim > 1}
        decayed = matrices - undecayed
        assert decayed
        assert all(name.endswith(".weight") for name in decayed)
        assert not any(name.endswith(".weight") for name in matrices & undecayed)
    assert {"embeddings.cls_token", "embeddings.mask_token"} <= undecayed_names(vit)
    assert "embeddings.register_tokens" in undecayed_names(registers)
    assert undecayed_names(AttentionPools(8, 8, 2)) >= {"queries", "output_bias"}


def test_bad_multipliers_are_named():
    with pytest.raises(ValueError, match="'bacbone' begins none"):
        parameter_groups(Parts(), 1.0, 0.1, {"bacbone": 0.1})
    with pytest.raises(ValueError, match=r"not be negative, got .*-1"):
        parameter_groups(Parts(), 1.0, 0.1, {"backbone": -1.0})


def test_a_step_that_asks_for_state_makes_moments_and_nothing_else():
    """How torch.distributed.checkpoint prepares a new optimizer: learning rate 0, gradients 0."""
    params = make_params()
    optimizer = TaskBalancedAdamW(params, lr=0.0, sampling_probabilities=PROBABILITIES)
    before = copy.deepcopy(params)
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    assert all(set(optimizer.state[p]) == {"exp_avg", "exp_avg_sq"} for p in params)
    assert optimizer.param_groups[0]["step"] == 0
    with pytest.raises(RuntimeError, match="begin_step"):
        optimizer.step()


def test_frozen_parameters_stay():
    params = make_params()
    params[0].requires_grad_(False)
    optimizer = TaskBalancedAdamW(params, lr=0.1, weight_decay=1.0, sampling_probabilities={"a": 1.0})
    before = params[0].clone()
    set_gradients(params[1:], 0, "b")
    optimizer.begin_step("a")
    optimizer.step()
    assert torch.equal(params[0], before)


@pytest.mark.slow
def test_sharded_parameters_move_like_whole_ones_and_resume(tmp_path):
    script = Path(__file__).with_name("fsdp_toy.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", str(script)]
    command.append(str(tmp_path / "checkpoint"))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
