"""Samples that cannot be read: replaced, counted once each, and too many of them stop the run."""

import io

import pytest
from multitask_toys import TASKS, ToyDataset, make_trainer
from PIL import Image, UnidentifiedImageError

from transformers_upv2.data.examples import DataError, load_image, reason_of
from transformers_upv2.training.streams import ShuffledStream

UNREADABLE = OSError("cannot read image")


class UnreadableDataset(ToyDataset):
    """Some samples raise an error."""

    def __init__(self, task, bad, error=UNREADABLE):
        super().__init__(task, size=20)
        self.bad, self.error = bad, error

    def __getitem__(self, index):
        if index in self.bad:
            raise self.error
        return super().__getitem__(index)


@pytest.mark.parametrize("wrap", [ShuffledStream, lambda dataset: dataset])
def test_a_bad_sample_that_comes_again_counts_once(tmp_path, wrap):
    datasets = {task: wrap(UnreadableDataset(task, {3} if task == "a" else ())) for task in TASKS}
    trainer = make_trainer(tmp_path, datasets=datasets, max_steps=40, max_bad_samples=1, save_strategy="no")
    trainer.train()
    ((task, reason, times),) = trainer.task_log.replaced.values()
    assert (task, reason.removeprefix("sample 3: ")) == ("a", "cannot read image")
    assert trainer.state.log_history[-1]["replaced_samples/a"] == times > 3
    assert all(3 not in indices for task, indices, _ in trainer.model.calls if task == "a")


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_unreadable_samples_of_plain_data_sets_are_replaced_alike_after_a_resume(tmp_path, num_workers):
    def train(folder, **options):
        datasets = {"a": UnreadableDataset("a", {1, 4}), "b": UnreadableDataset("b", {7}, DataError("no image"))}
        arguments = {"sampling_probabilities": {"a": 0.5, "b": 0.5}, "dataloader_num_workers": num_workers}
        trainer = make_trainer(folder, datasets=datasets, max_steps=24, save_steps=12, **arguments)
        trainer.train(**options)
        return trainer

    whole = train(tmp_path)
    resumed = train(tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    assert whole.model.calls[-len(resumed.model.calls) :] == resumed.model.calls
    assert whole.task_log.replaced == resumed.task_log.replaced
    assert {name: entry[:2] for name, entry in whole.task_log.replaced.items()} == {
        "a/1": ["a", "cannot read image"],
        "a/4": ["a", "cannot read image"],
        "b/7": ["b", "no image"],
    }


@pytest.mark.parametrize(
    ("bad", "error", "stop", "message"),
    [
        (range(10), OSError("gone"), (DataError, RuntimeError), r"(?s)`max_bad_samples`.*: gone"),
        ([3], KeyError("caption"), KeyError, "caption"),
        ([3], TypeError("not a string"), TypeError, "not a string"),
    ],
)
def test_too_many_unreadable_samples_or_a_fault_of_the_program_stop_the_run(tmp_path, bad, error, stop, message):
    datasets = {task: UnreadableDataset(task, bad, error) for task in TASKS}
    trainer = make_trainer(tmp_path, datasets=datasets, max_steps=30, max_bad_samples=3, save_strategy="no")
    with pytest.raises(stop, match=message):
        trainer.train()


def test_a_reason_is_the_same_every_time():
    """PIL names the address of what it reads."""
    reasons, messages = set(), set()
    kept = [io.BytesIO(b"no image") for _ in range(3)]
    for content in kept:
        with pytest.raises(UnidentifiedImageError) as caught:
            Image.open(content)
        messages.add(str(caught.value))
        reasons.add(reason_of(caught.value))
        with pytest.raises(DataError) as caught:
            load_image("a.tar: 3", content=content.getvalue())
        assert "0x" not in str(caught.value)
    assert (len(messages), len(reasons)) == (3, 1)
