"""Read JSON files of annotations, with errors that name file and field."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers_upv2.data.examples import DataError


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Raises:
        DataError: If the file is missing, is not JSON or holds something else.
    """
    return dict(require_keys(read_any_json(path), (), f"{path}: the content"))


def read_any_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: If the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: the annotation file must exist, but there is none.") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: the annotation file must be JSON, but got: {error}.") from error


def require_keys(item: object, keys: tuple[str, ...], where: str) -> Mapping[str, Any]:
    """Return ``item`` if it is a mapping with all ``keys``.

    Raises:
        DataError: If it is not; the message starts with ``where`` and names the missing keys.
    """
    if not isinstance(item, Mapping):
        raise DataError(f"{where} must be a JSON object, got {type(item).__name__}.")
    missing = [key for key in keys if key not in item]
    if missing:
        raise DataError(f"{where} must have the keys {list(keys)}, missing {missing}.")
    return item


def require_list(content: Mapping[str, Any], key: str, where: str) -> list[Any]:
    """Return the list under ``key``.

    Raises:
        DataError: If something else is there; the message starts with ``where``.
    """
    if not isinstance(content[key], list):
        raise DataError(f"{where}: `{key}` must be a list, got {type(content[key]).__name__}.")
    return content[key]


def require_path(item: Mapping[str, Any], key: str, where: str) -> str:
    """Return the path under ``key``.

    Raises:
        DataError: If it is no text, or empty; the message starts with ``where``.
    """
    if not isinstance(item[key], str) or not item[key]:
        raise DataError(f"{where}: `{key}` must be a text, got {item[key]!r}.")
    return item[key]


def index_by_id(items: list[Any], keys: tuple[str, ...], where: str) -> dict[int | str, dict[str, Any]]:
    """Return the items of a COCO list by their ``id``, which must be unique.

    Raises:
        DataError: If an item lacks one of ``keys``, an id occurs twice, or some ids are texts and others integers.
    """
    by_id: dict[int | str, dict[str, Any]] = {}
    for number, item in enumerate(items):
        require_keys(item, ("id", *keys), f"{where}[{number}]")
        if not isinstance(item["id"], int | str) or type(item["id"]) is not type(items[0]["id"]):
            raise DataError(
                f"{where}[{number}]: `id` must be an integer, or a text in all of them, got {item['id']!r} after "
                f"{items[0]['id']!r}."
            )
        if item["id"] in by_id:
            raise DataError(f"{where}[{number}]: `id` must be unique, got {item['id']} twice.")
        by_id[item["id"]] = item
    return by_id
