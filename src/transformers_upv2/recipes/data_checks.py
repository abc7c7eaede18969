"""What can be known of a recipe's data before anything is spent: what would stop or spoil a run later on."""

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from transformers_upv2.data.class_names import ReorderedClasses
from transformers_upv2.data.examples import BAD_SAMPLE_ERRORS, DataError, reason_of
from transformers_upv2.evaluation.evaluator import Evaluator, match_class_names
from transformers_upv2.model.candidates import shorten
from transformers_upv2.training.arguments import UniPerceiverV2TrainingArguments
from transformers_upv2.training.loader import datasets_of_task
from transformers_upv2.training.streams import Stream, own_share


def check_datasets(
    datasets: Mapping[str, Mapping[str, Any]], evaluation: Mapping[str, Any], evaluators: Mapping[str, Evaluator]
) -> None:
    """Check that there are objects to learn, that evaluation means classes that the model knows, and that it ends.

    Evaluation finds classes by their names, so it may have some of them in another order.

    Args:
        datasets: The training data of every task, whose classes are aligned.
        evaluation: The data to evaluate on, by ``task`` or ``task/name``.
        evaluators: The evaluator of every task.

    Raises:
        DataError: If all images of a task that has objects are without one.
        ValueError: If data to evaluate on has other classes or is a stream; the message names the data sets.
    """
    for task, members in datasets.items():
        _check_objects(task, members)
    names_of_task = {task: _known_class_names(task, members) for task, members in datasets.items()}
    for key, reader in evaluation.items():
        if not hasattr(reader, "__len__"):
            raise ValueError(
                f"Data to evaluate on must not be a stream, got {type(reader).__name__} for {key!r}. "
                "Use another reader."
            )
        task = key.split("/")[0]
        known, names = names_of_task.get(task), class_names_of(reader)
        if known and names and not getattr(evaluators[task], "class_agnostic", False):
            try:
                match_class_names(names, known)
            except ValueError as error:
                raise ValueError(
                    f"evaluation of {key!r} by a model of the training data's classes: {error}"
                ) from error


def check_shards(
    datasets: Mapping[str, Mapping[str, Any]], arguments: UniPerceiverV2TrainingArguments, world_size: int
) -> None:
    """Check that every loader worker of every process gets a shard of every stream.

    Raises:
        ValueError: If one would get nothing.
    """
    for task, each in arguments.for_tasks(datasets).items():
        for reader in datasets_of_task(datasets[task], task)[0]:
            if isinstance(reader, Stream):
                own_share(reader, task, (0, world_size), each.num_workers)


def look_at(name: str, reader: Any, max_bad: int) -> Iterator[str]:
    """Read examples until one is good, as the run would: training replaces bad ones, evaluation stops at the first.

    Args:
        name: Of the data set, for the message.
        reader: The data set.
        max_bad: How many examples may be bad.

    Yields:
        How much there is and what an example has, and the bad ones before it.

    Raises:
        DataError: If more are bad, or all.
    """
    yield f"{len(reader)} examples" if hasattr(reader, "__len__") else f"{reader.num_shards} shards"
    bad: list[str] = []
    for example in islice(_examples(reader), max_bad + 1):
        if not isinstance(example, Exception):
            yield f"the first{' good one' if bad else ''} has {', '.join(example)}"
            break
        bad.append(reason_of(example))
    else:
        raise DataError(
            f"{name}: at most {max_bad} examples may be bad, and not all, but the first {len(bad)} are. Mend the "
            f"data; the first one is: {bad[0] if bad else 'missing'}"
        )
    if bad:
        yield f"{len(bad)} bad before it would be replaced, such as {bad[0]}"


def _examples(reader: Any) -> Iterator[Any]:
    """Yield examples in order, and the error in place of a bad one."""
    if not hasattr(reader, "__getitem__"):
        yield from reader
        return
    for index in range(len(reader)):
        try:
            example = reader[index]
        except BAD_SAMPLE_ERRORS as error:
            example = error
        yield example


def unwrap(reader: Any) -> Any:
    """Return the data set as it was opened, before its classes were brought into another order."""
    return reader.dataset if isinstance(reader, ReorderedClasses) else reader


def describe_images(name: str, reader: Any, max_missing: int) -> Iterator[str]:
    """Look for all image files, and count masks and classes.

    Args:
        name: Of the data set, for the message.
        reader: The data set.
        max_missing: How many files may be missing.

    Yields:
        Remarks for a person.

    Raises:
        DataError: If more files are missing.
    """
    reader = unwrap(reader)
    if hasattr(reader, "image_files"):
        missing = (file for file in reader.image_files() if not file.is_file())
        found = list(islice(missing, max_missing + 1))
        if len(found) > max_missing:
            raise DataError(
                f"{name}: of its {len(reader)} image files at most {max_missing} may be missing, but {found[0]} and "
                f"{len(found) - 1 + sum(1 for _ in missing)} others are."
            )
        if found:
            yield f"{len(found)} image files are missing, such as {found[0]}"
    if hasattr(reader, "num_masks"):
        yield f"{reader.num_masks} of {reader.num_objects} objects have masks"
    if hasattr(reader, "labels"):
        counts = Counter(reader.labels).values()
        yield f"{len(counts)} classes of {min(counts)} to {max(counts)} images: {shorten(reader.class_names)}"


def _check_objects(task: str, members: Mapping[str, Any]) -> None:
    readers = [unwrap(reader) for reader in datasets_of_task(members, task)[0]]
    if all(getattr(reader, "num_objects", None) == 0 for reader in readers):
        raise DataError(
            f"The training data of {task!r} must show at least one object, got {sum(map(len, readers))} images "
            "without one. Regions with `iscrowd` 1 do not count: some tools write it with every mask. Set it to 0."
        )


def _known_class_names(task: str, members: Mapping[str, Any]) -> list[str]:
    """Return the class names of a task's training data, which are the same in all of it."""
    (first, *_), _ = datasets_of_task(members, task)
    return class_names_of(first)


def class_names_of(reader: Any) -> list[str]:
    """Return a data set's class names, none if it has no classes."""
    return list(getattr(reader, "class_names", ()))
