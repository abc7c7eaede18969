"""Arguments of several tasks, from Python and from a command line."""

import pytest
from transformers import HfArgumentParser

from transformers_upv2.training.arguments import (
    MultiTaskTrainingArguments,
    UniPerceiverV2TrainingArguments,
)


def arguments(tmp_path, **kwargs):
    return MultiTaskTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", **kwargs)


def test_dicts_come_from_the_command_line(tmp_path):
    parser = HfArgumentParser(UniPerceiverV2TrainingArguments)
    (args,) = parser.parse_args_into_dataclasses(
        [
            *("--output_dir", str(tmp_path), "--use_cpu", "True"),
            *("--sampling_probabilities", '{"a": 0.5, "b": 1.5}'),
            *("--lr_multipliers", '{"model.backbone": 0.1}'),
            *("--image_options", '{"a": {"size": {"longest_edge": 64}, "do_resize": false}}'),
            *("--batch_sizes", '{"b": 3}', "--optimizer", "adamw", "--max_grad_norm", "0.5"),
        ]
    )
    assert args.sampling_probabilities == {"a": 0.5, "b": 1.5}
    assert args.lr_multipliers == {"model.backbone": 0.1}
    assert args.image_options == {"a": {"size": {"longest_edge": 64}, "do_resize": False}}
    assert args.optimizer == "adamw"
    of_tasks = args.for_tasks(["a", "b"])
    assert of_tasks["a"].sampling_probability == 0.25
    assert of_tasks["b"].batch_size == 3
    assert of_tasks["a"].batch_size == args.per_device_train_batch_size


def test_defaults_suit_several_tasks(tmp_path):
    args = arguments(tmp_path)
    assert not args.remove_unused_columns
    assert args.max_grad_norm == 0
    assert args.label_names == ["labels"]
    assert not args.eval_do_concat_batches
    assert args.ddp_find_unused_parameters
    of_tasks = args.for_tasks(["a", "b", "c", "d"])
    assert {task.sampling_probability for task in of_tasks.values()} == {0.25}
    assert {(task.task_weight, task.loss_weight) for task in of_tasks.values()} == {(1.0, 1.0)}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"task_weights": {"z": 1.0}}, r"`task_weights` .* which are \['a', 'b'\], got \['z'\]"),
        ({"batch_sizes": {"z": 1}}, r"`batch_sizes` .* got \['z'\]"),
        ({"sampling_probabilities": {"a": 1.0}}, r"it leaves out \['b'\]"),
        ({"sampling_probabilities": {"a": 1.0, "b": -1.0}}, "got -1.0 for task 'b'"),
    ],
)
def test_tasks_without_data_are_named(tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **kwargs).for_tasks(["a", "b"])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_sizes": "detection=2"}, "`batch_sizes` must be a dict .* got 'detection=2'"),
        ({"sampling": "mixed"}, "got `sampling='mixed'`.*optimizer='adamw'"),
        ({"max_grad_norm": 1.0}, "`max_grad_norm` must be 0 .* got 1.0"),
        ({"sampling": "shuffled"}, "`sampling` must be one of .* got 'shuffled'"),
        ({"optim": "adafactor"}, "`optim` must be one of .*adafactor.* Choose one with `optimizer`"),
        ({"auto_find_batch_size": True}, "`auto_find_batch_size` .* got True.* lower `batch_sizes`"),
        ({"train_sampling_strategy": "group_by_length"}, "`train_sampling_strategy` must be .*'group_by_length'"),
        ({"max_bad_samples": -1}, "`max_bad_samples` must not be negative, got -1"),
        ({"batch_sizes": {"a": 0}}, "`batch_sizes` must be whole numbers of at least 1, got 0 for task 'a'"),
        ({"batch_sizes": {"a": 2.5}}, "`batch_sizes` must be whole numbers .* got 2.5 for task 'a'"),
        ({"batch_sizes": {"a": "8"}}, "`batch_sizes` must be whole numbers .* got '8' for task 'a'"),
        ({"num_workers": {"a": -1}}, "`num_workers` must be whole numbers of at least 0, got -1 for task 'a'"),
        ({"loss_weights": {"a": -1}}, "`loss_weights` must be finite numbers of at least 0.0, got -1 for task 'a'"),
        ({"loss_weights": {"a": float("nan")}}, "`loss_weights` must be finite numbers .* got nan"),
        ({"task_weights": {"a": "x"}}, "`task_weights` must be finite numbers .* got 'x'"),
        ({"sampling_probabilities": {"a": "1"}}, "`sampling_probabilities` must be finite numbers .* got '1'"),
        ({"optimizer": "sgd"}, "`optimizer` must be one of .* got 'sgd'"),
    ],
)
def test_contradictions_are_named(tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **kwargs)
