"""The multi-task Trainer on toy tasks: what it feeds, what it tells the optimizer, how it resumes."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets as hf_datasets
import pytest
import torch
from multitask_toys import TASKS, KeepGradients, ToyDataset, ToyModel, make_trainer, same_weights
from transformers import BertConfig, BertForSequenceClassification
from transformers.trainer_utils import get_last_checkpoint

from transformers_upv2.training.arguments import MultiTaskTrainingArguments
from transformers_upv2.training.sampler import UnmixedTaskSampler
from transformers_upv2.training.trainer import MultiTaskTrainer

PROBABILITIES = {"a": 0.5, "b": 0.3, "c": 0.2}


def test_every_update_has_one_task_and_each_task_its_batch_size(tmp_path):
    sizes = {"a": 2, "b": 5, "c": 3}
    trainer = make_trainer(tmp_path, batch_sizes=sizes)
    trainer.train()
    sampler = UnmixedTaskSampler(PROBABILITIES, trainer.args.seed)
    calls = trainer.model.calls
    assert [task for task, *_ in calls] == [sampler.task_at(i // 2) for i in range(24)]
    assert all(len(indices) == sizes[task] for task, indices, _ in calls)
    assert len({seed for *_, seed in calls}) == len(calls)
    for task in TASKS:
        drawn = [index for t, indices, _ in calls for index in indices if t == task]
        assert len(set(drawn)) == len(drawn)  # none reached its second epoch


def test_losses_norms_and_counts_of_each_task_are_logged(tmp_path):
    trainer = make_trainer(tmp_path, callbacks=[keeper := KeepGradients()], logging_steps=1)
    trainer.train()
    sampler = UnmixedTaskSampler(PROBABILITIES, trainer.args.seed)
    for step, logs in enumerate(trainer.state.log_history[:-1]):
        task = sampler.task_at(step)
        assert {name for name in logs if name.startswith("loss/")} == {f"loss/{task}", f"loss/{task}/square"}
        assert logs[f"loss/{task}"] == pytest.approx(logs["loss"], rel=1e-5)
        norm = math.sqrt(sum(g.square().sum().item() for g in keeper.gradients[step].values()))
        assert logs[f"grad_norm/{task}"] == pytest.approx(norm, rel=1e-5)
        assert {t: logs[f"steps/{t}"] for t in TASKS} == sampler.counts_before(step + 1)


def without_times(log_history):
    return [{k: v for k, v in row.items() if not k.startswith("time_share/")} for row in log_history]


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_resumed_run_ends_bit_equal(tmp_path, num_workers):
    """Batch sizes make every task begin a new epoch before and after the checkpoint."""
    options = {"batch_sizes": {"a": 20, "b": 30, "c": 40}, "dataloader_num_workers": num_workers}
    whole = make_trainer(tmp_path / "whole", **options)
    whole.train()
    resumed = make_trainer(tmp_path / "whole", **options)
    with torch.no_grad():
        for parameter in resumed.model.parameters():
            parameter.zero_()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert same_weights(whole.model.state_dict(), resumed.model.state_dict())
    assert resumed.model.calls == whole.model.calls[8:]
    assert resumed.state.epoch == whole.state.epoch
    assert without_times(resumed.state.log_history[:-1]) == without_times(whole.state.log_history[:-1])


def run_script(folder, processes=1, **options):
    script = Path(__file__).with_name("multitask_toys.py")
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
    folder.mkdir(exist_ok=True)
    options["folder"] = str(folder)
    return subprocess.run([*command, str(script), json.dumps(options)], capture_output=True, text=True, check=False)


def load_result(folder, rank=0):
    return torch.load(folder / f"result-{rank}.pt", weights_only=True)


@pytest.mark.slow
def test_a_killed_run_resumes_bit_equal(tmp_path):
    assert run_script(tmp_path / "whole").returncode == 0
    assert run_script(tmp_path / "killed", kill_at=7).returncode == -9
    done = run_script(tmp_path / "killed", resume=True)
    assert done.returncode == 0, done.stderr
    whole, killed = load_result(tmp_path / "whole"), load_result(tmp_path / "killed")
    assert same_weights(whole["weights"], killed["weights"])
    assert whole["calls"][8:] == killed["calls"]


@pytest.mark.slow
def test_two_processes_train_one_task_and_equal_one_process(tmp_path):
    arguments = {"ddp_backend": "gloo", "batch_sizes": {"a": 2, "b": 3, "c": 4}, "max_steps": 8}
    done = run_script(tmp_path / "two", processes=2, arguments=arguments)
    assert done.returncode == 0, done.stderr
    ranks = [load_result(tmp_path / "two", rank) for rank in range(2)]
    assert same_weights(ranks[0]["weights"], ranks[1]["weights"])
    for (task, one, seed), (other_task, other, other_seed) in zip(ranks[0]["calls"], ranks[1]["calls"], strict=True):
        assert (task, seed) == (other_task, other_seed)
        assert not set(one) & set(other)

    resumed = tmp_path / "resumed"
    shutil.copytree(tmp_path / "two" / "checkpoint-4", resumed / "checkpoint-4")
    done = run_script(resumed, processes=2, arguments=arguments, resume=True)
    assert done.returncode == 0, done.stderr
    assert same_weights(ranks[0]["weights"], load_result(resumed)["weights"])


@pytest.mark.slow
@pytest.mark.parametrize("state_dict_type", ["FULL_STATE_DICT", "SHARDED_STATE_DICT"])
def test_fsdp2_trains_as_ddp_does_and_resumes(tmp_path, state_dict_type):
    common = {"ddp_backend": "gloo", "max_steps": 8}
    sharded = common | {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": state_dict_type}}
    for name, arguments in (("ddp", common), ("fsdp", sharded)):
        done = run_script(tmp_path / name, processes=2, arguments=arguments, exact=True)
        assert done.returncode == 0, done.stderr
    ddp, fsdp = load_result(tmp_path / "ddp")["weights"], load_result(tmp_path / "fsdp")["weights"]
    for name, value in ddp.items():
        torch.testing.assert_close(fsdp[name], value, rtol=1e-4, atol=1e-5)

    shutil.copytree(tmp_path / "fsdp" / "checkpoint-4", tmp_path / "resumed" / "checkpoint-4")
    done = run_script(tmp_path / "resumed", processes=2, arguments=sharded, resume=True, exact=True)
    assert done.returncode == 0, done.stderr
    assert same_weights(fsdp, load_result(tmp_path / "resumed")["weights"])


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one_with_twice_the_batch(tmp_path):
    for processes, size in ((1, 6), (2, 3)):
        trainer_arguments = {"max_steps": 4, "per_device_train_batch_size": size}
        if processes > 1:
            trainer_arguments["ddp_backend"] = "gloo"
        done = run_script(tmp_path / str(processes), processes, arguments=trainer_arguments, exact=True)
        assert done.returncode == 0, done.stderr
    one, two = (load_result(tmp_path / str(processes)) for processes in (1, 2))
    for whole, shared in zip(one["gradients"], two["gradients"], strict=True):
        assert set(whole) == set(shared)  # no gradient, not a zero, for unused heads
        for name, gradient in whole.items():
            torch.testing.assert_close(shared[name], gradient, rtol=1e-5, atol=1e-6)


def test_mixed_sampling_adds_up_weighted_losses(tmp_path):
    weights = {"a": 2.0, "b": 1.0, "c": 0.5}
    keeper = KeepGradients()
    trainer = make_trainer(
        tmp_path,
        model=ToyModel(dropout=0.0),
        datasets={task: ToyDataset(task, noise=0.0) for task in TASKS},
        callbacks=[keeper],
        sampling="mixed",
        optimizer="adamw",
        loss_weights=weights,
        max_steps=1,
    )
    model = ToyModel(dropout=0.0)
    trainer.train()
    assert sorted(task for task, *_ in trainer.model.calls) == ["a", "a", "b", "b", "c", "c"]
    for task, indices, _ in trainer.model.calls:
        data = ToyDataset(task, noise=0.0)
        outputs = model(task, data.inputs[indices], data.targets[indices], torch.tensor(indices), 0)
        (outputs["loss"] * weights[task] * PROBABILITIES[task] / 2).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(keeper.gradients[0][name], parameter.grad)


def test_adamw_with_clipping_equals_a_plain_loop(tmp_path):
    options = {"optimizer": "adamw", "max_grad_norm": 0.5, "loss_weights": {"a": 3.0}, "weight_decay": 0.1}
    datasets = {task: ToyDataset(task, noise=0.0) for task in TASKS}
    trainer = make_trainer(
        tmp_path, ToyModel(dropout=0.0), datasets, lr_scheduler_type="constant", max_steps=6, **options
    )
    trainer.train()
    model = ToyModel(dropout=0.0)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    for number, (task, indices, _) in enumerate(trainer.model.calls):
        data = datasets[task]
        outputs = model(task, data.inputs[indices], data.targets[indices], torch.tensor(indices), 0)
        (outputs["loss"] * (3.0 if task == "a" else 1.0) / 2).backward()
        if number % 2:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            for parameter in model.parameters():  # a missing gradient counts as zero
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            optimizer.step()
            optimizer.zero_grad()
    for ours, plain in zip(trainer.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


def test_task_and_group_settings_reach_the_optimizer(tmp_path):
    trainer = make_trainer(tmp_path, task_weights={"b": 4.0}, lr_multipliers={"trunk": 0.1})
    optimizer = trainer.create_optimizer()
    assert optimizer.task_weights == {"a": 1.0, "b": 4.0, "c": 1.0}
    assert optimizer.sampling_probabilities == PROBABILITIES
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert all(rates[id(p)] == pytest.approx(1e-3) for p in trainer.model.trunk.parameters())
    assert all(rates[id(p)] == 1e-2 for p in trainer.model.heads.parameters())


@pytest.mark.parametrize("multipliers", [{"trunk": 0.1, "heads.a": 3.0}, {"trunk": 0.0, "heads": 0.5}])
def test_the_base_rate_and_that_of_every_multiplier_are_logged(tmp_path, multipliers):
    options = {"max_steps": 6, "logging_steps": 1, "save_strategy": "no", "lr_scheduler_type": "linear"}
    trainer = make_trainer(tmp_path, lr_multipliers=multipliers, **options)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "learning_rate" in row]
    for step, row in enumerate(rows):
        rates = {name: row[name] for name in row if name.startswith("learning_rate")}
        expected = {"learning_rate": 1.0} | {f"learning_rate/{prefix}": by for prefix, by in multipliers.items()}
        assert rates == pytest.approx({name: 1e-2 * by * (1 - step / 6) for name, by in expected.items()})
    assert len(rows) == 6


def test_a_schedule_on_a_plateau_lowers_the_rates_and_the_base_rate_is_logged(tmp_path):
    options = {"max_steps": 8, "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "no"}
    trainer = make_trainer(
        tmp_path,
        eval_dataset={"a": ToyDataset("a")},
        lr_scheduler_type="reduce_lr_on_plateau",
        lr_scheduler_kwargs={"mode": "max", "patience": 0, "factor": 0.5},  # a loss that falls is a plateau
        metric_for_best_model="a_loss",
        label_names=["y"],
        lr_multipliers={"trunk": 0.1, "heads": 3.0},
        **options,
    )
    trainer.train()
    rates = [row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row]
    assert rates[0] == pytest.approx(1e-2)
    assert rates[-1] < 0.6e-2
    last = {group["lr"] for group in trainer.optimizer.param_groups}
    assert max(last) == pytest.approx(30 * min(last))


class PoisonedModel(ToyModel):
    def forward(self, task, x, y, index, step_seed):
        outputs = super().forward(task, x, y, index, step_seed)
        if len(self.calls) in (5, 6):
            outputs["loss"] = outputs["loss"] * float("nan")
        return outputs


@pytest.mark.parametrize("optimizer", ["tbgn", "adamw"])
def test_a_loss_that_is_not_finite_is_skipped_and_counted(tmp_path, optimizer):
    trainer = make_trainer(tmp_path, PoisonedModel(), optimizer=optimizer)
    trainer.train()
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    logs = trainer.state.log_history[-1]
    assert sum(value for name, value in logs.items() if name.startswith("skipped_steps/")) == 1
    assert sum(value for name, value in logs.items() if name.startswith("steps/")) == 11


class FaultyDataset(ToyDataset):
    def __getitem__(self, index):
        example = super().__getitem__(index)
        return {**example, "replaced": [(index, "unreadable")] if index < 5 else []}


def collate_faulty(examples):
    replaced = [item for example in examples for item in example.pop("replaced")]
    return {**torch.utils.data.default_collate(examples), "replaced": replaced}


def make_faulty_trainer(folder, **arguments):
    datasets = {task: FaultyDataset(task, size=12) for task in TASKS}
    trainer = make_trainer(folder, datasets=datasets, **arguments)
    trainer.data_collators = collate_faulty
    return trainer


def test_replaced_samples_are_counted_and_listed_over_a_resume(tmp_path):
    trainer = make_faulty_trainer(tmp_path)
    trainer.train()
    bad = sum(index < 5 for _, indices, _ in trainer.model.calls for index in indices)
    resumed = make_faulty_trainer(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    for one in (trainer, resumed):
        logs = one.state.log_history[-1]
        assert sum(value for name, value in logs.items() if name.startswith("replaced_samples/")) == bad
    assert resumed.task_log.replaced == trainer.task_log.replaced


def test_too_many_bad_samples_stop_the_run_with_the_list(tmp_path):
    trainer = make_faulty_trainer(tmp_path, max_bad_samples=3)
    with pytest.raises(RuntimeError, match=r"(?s)`max_bad_samples` = 3 samples.*times\): unreadable"):
        trainer.train()


def test_a_checkpoint_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)
    save = type(trainer.state).save_to_json

    def fail(state, path):
        if state.global_step == 8:
            raise OSError("No space left on device")
        save(state, path)

    monkeypatch.setattr(type(trainer.state), "save_to_json", fail)
    with pytest.raises(RuntimeError, match=r"step 8 .* No space left .* newest whole one is .*checkpoint-4"):
        trainer.train()
    assert (tmp_path / "_incomplete" / "checkpoint-8" / "model.safetensors").exists()
    assert get_last_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-4")
    monkeypatch.undo()
    make_trainer(tmp_path).train(resume_from_checkpoint=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-12", "checkpoint-4", "checkpoint-8"]


def test_old_checkpoints_go_and_the_best_stays(tmp_path):
    trainer = make_trainer(
        tmp_path,
        save_total_limit=1,
        eval_strategy="steps",
        eval_steps=4,
        metric_for_best_model="eval_a_loss",
        greater_is_better=True,
        load_best_model_at_end=True,
        label_names=["y"],
        eval_dataset={"a": ToyDataset("a", size=8)},
    )
    trainer.train()
    losses = {row["step"]: row["eval_a_loss"] for row in trainer.state.log_history if "eval_a_loss" in row}
    best = max(losses, key=losses.get)
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    saved = json.loads((tmp_path / f"checkpoint-{best}" / "trainer_state.json").read_text())
    assert saved["best_model_checkpoint"] == str(tmp_path / f"checkpoint-{best}")


def text_dataset(first_label):
    """Each text repeats one word; the label says whether the word's number is even."""
    ids = torch.arange(5, 29)[:, None].expand(-1, 6)
    mask = torch.ones(6, dtype=torch.int64)
    return [{"input_ids": row, "attention_mask": mask, "labels": first_label + int(row[0]) % 2} for row in ids]


def test_a_stock_model_trains_and_is_evaluated(tmp_path):
    config = BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=2,
        max_position_embeddings=8,
    )
    datasets = {"first": text_dataset(0), "second": text_dataset(0)}
    args = MultiTaskTrainingArguments(
        output_dir=str(tmp_path),
        max_steps=60,
        learning_rate=3e-3,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
    )
    trainer = MultiTaskTrainer(
        BertForSequenceClassification(config), args, datasets, eval_dataset={"first": datasets["first"]}
    )
    before = trainer.evaluate()["eval_first_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_first_loss"] < 0.7 * before
    assert trainer.evaluate({"second/again": datasets["second"]})["eval_second/again_loss"] < 0.5
    predicted = trainer.predict({"first": datasets["first"], "second/again": datasets["second"][:3]})
    logits = torch.cat([torch.as_tensor(part) for part in predicted["first"].predictions])
    right = torch.tensor([row["labels"] for row in datasets["first"]])
    assert (logits.argmax(dim=1) == right).float().mean() > 0.9
    assert len(predicted["second/again"].predictions[0]) == 3
    assert "test_second/again_loss" in predicted["second/again"].metrics


def test_bad_setups_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"`task_weights` .* got \['z'\]"):
        make_trainer(tmp_path, task_weights={"z": 1.0})
    with pytest.raises(ValueError, match=r"`max_steps` must be positive.* got -1"):
        make_trainer(tmp_path, max_steps=-1).train()
    args = MultiTaskTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match="at least one task"):
        MultiTaskTrainer(ToyModel(), args).get_train_dataloader()
    trainer = make_trainer(tmp_path)
    trainer.data_collators = {"a": torch.utils.data.default_collate}
    with pytest.raises(ValueError, match=r"none for 'b', only for \['a'\]"):
        trainer.train()
    with pytest.raises(ValueError, match=r"`eval_dataset` must be a dict .* got list"):
        trainer.evaluate([1, 2])
    with pytest.raises(ValueError, match=r"`test_dataset` must be a dict .* got ToyDataset"):
        trainer.predict(ToyDataset("a"))
    with pytest.raises(ValueError, match=r"`train_dataset` must be a dict from tasks to data sets, got ToyDataset"):
        make_trainer(tmp_path, datasets=ToyDataset("a"))
    rows = hf_datasets.Dataset.from_dict({"x": [1.0]})
    for splits in (hf_datasets.DatasetDict(train=rows, test=rows), hf_datasets.IterableDatasetDict(train=rows)):
        with pytest.raises(ValueError, match=r"task 'a' must be one split, .*'train'"):
            make_trainer(tmp_path, datasets=dict.fromkeys(TASKS, splits)).train()


def test_fsdp_of_version_1_is_refused(tmp_path, monkeypatch):
    prepare = MultiTaskTrainer.create_accelerator_and_postprocess

    def pretend(self):
        prepare(self)
        self.is_fsdp_enabled = True
        monkeypatch.setitem(self.accelerator.state._shared_state, "fsdp_plugin", SimpleNamespace(fsdp_version=1))

    monkeypatch.setattr(MultiTaskTrainer, "create_accelerator_and_postprocess", pretend)
    with pytest.raises(ValueError, match="FSDP must be of version 2"):
        make_trainer(tmp_path)


def test_deepspeed_is_refused(tmp_path, monkeypatch):
    prepare = MultiTaskTrainer.create_accelerator_and_postprocess

    def pretend(self):
        prepare(self)
        self.is_deepspeed_enabled = True

    monkeypatch.setattr(MultiTaskTrainer, "create_accelerator_and_postprocess", pretend)
    with pytest.raises(ValueError, match="DeepSpeed must be off"):
        make_trainer(tmp_path)
