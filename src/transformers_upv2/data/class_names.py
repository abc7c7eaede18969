"""The classes of several data sets of one task: a label must mean the same class in all of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset

from transformers_upv2.data.examples import DataError
from transformers_upv2.model.candidates import shorten


class ReorderedClasses(Dataset[dict[str, Any]]):
    """A data set whose labels count through its classes in another order.

    Attributes:
        class_names: The classes in the new order.
    """

    def __init__(self, dataset: Any, class_names: list[str]) -> None:
        """Wrap a data set.

        Args:
            dataset: Map-style, of classification or detection examples, with ``class_names``.
            class_names: The same names in the order to use, each once.
        """
        self.dataset, self.class_names = dataset, list(class_names)
        self._new_labels = [self.class_names.index(name) for name in dataset.class_names]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.dataset[index]
        if "label" in example:
            return {**example, "label": self._new_labels[example["label"]]}
        annotations = [
            {**each, "category_id": self._new_labels[each["category_id"]]} for each in example["annotations"]
        ]
        return {**example, "annotations": annotations}


def align_classes(task: str, members: Mapping[str, Any]) -> dict[str, Any]:
    """Put the classes of all data sets of a task into the order of the first one, by name.

    Other names than the first one's are an error and not added: what one data set does not annotate
    would be background in its images.

    Args:
        task: Their task, for the message.
        members: ``{name: dataset}`` or ``{name: (dataset, weight)}``.

    Returns:
        The same, with those wrapped whose order differs.

    Raises:
        DataError: If two have not the same classes, or differ in order where a name stands for two classes.
    """
    aligned = dict(members)
    named = _members_with_classes(members)
    for member, names in named.items():
        entry, wanted = members[member], next(iter(named.values()))
        is_unique = len(set(names)) == len(names)
        if (
            names != wanted
            and sorted(names) == sorted(wanted)
            and is_unique
            and hasattr(_reader(entry), "__getitem__")
        ):
            reordered = ReorderedClasses(_reader(entry), wanted)
            aligned[member] = (reordered, *entry[1:]) if isinstance(entry, tuple) else reordered
    require_equal_classes(task, aligned)
    return aligned


def require_equal_classes(task: str, members: Mapping[str, Any]) -> None:
    """Make sure that a label means the same class in all data sets of a task.

    Args:
        task: Their task, for the message.
        members: ``{name: dataset}`` or ``{name: (dataset, weight)}``.

    Raises:
        DataError: If two have not the same classes in the same order.
    """
    named = _members_with_classes(members)
    for member, names in named.items():
        first, wanted = next(iter(named.items()))
        if names != wanted:
            raise DataError(
                f"All data sets of task {task!r} must have the same classes in the same order, but "
                f"{_difference(repr(first), wanted, repr(member), names)}. Rename the classes, or bring them into one "
                "order with `align_classes`, which needs every name once."
            )


def require_known_classes(task: str, members: Mapping[str, Any], model_names: Sequence[str]) -> None:
    """Make sure that a label of the data is the model's label of the same name.

    Args:
        task: Their task, for the message.
        members: ``{name: dataset}`` or ``{name: (dataset, weight)}``, all of the same classes.
        model_names: What the model knows, in the order of its labels.

    Raises:
        ValueError: If the names or their order differ.
    """
    for names in _members_with_classes(members).values():
        if names != list(model_names):
            raise ValueError(
                f"The model's labels of task {task!r} must be the classes of its training data in the same order, but "
                f"{_difference('the model', list(model_names), 'the data', names)}. Call "
                f"`model.set_labels(dataset.class_names, tokenizer, label_set={task!r})` first."
            )


def _members_with_classes(members: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the class names of those that have some, be they wrapped once, as by `torch.utils.data.Subset`."""
    readers = {member: _reader(entry) for member, entry in members.items()}
    names = {
        member: getattr(reader, "class_names", getattr(getattr(reader, "dataset", None), "class_names", None))
        for member, reader in readers.items()
    }
    return {member: list(each) for member, each in names.items() if each is not None}


def _reader(entry: Any) -> Any:
    return entry[0] if isinstance(entry, tuple) else entry


def _difference(first: str, wanted: list[str], member: str, names: list[str]) -> str:
    """Say in short how two lists of classes differ."""
    missing, added = ([n for n in one if n not in other] for one, other in ((wanted, names), (names, wanted)))
    if missing or added:
        return f"only in {first}: {shorten(missing)}, only in {member}: {shorten(added)}"
    return f"{first} has them as {shorten(wanted)}, {member} as {shorten(names)}"
