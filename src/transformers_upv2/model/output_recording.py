"""Hidden states and attention weights of g, for who asks with ``output_hidden_states`` or ``output_attentions``.

They are those of the pass over the input, [SPE] first. Candidates go through the same layers, but not on record. The
last layer's entry covers the tokens that are read; weights exist with ``attn_implementation="eager"`` only.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from transformers.utils.output_capturing import capture_outputs

FLAGS = ("output_hidden_states", "output_attentions")


def records_input(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method take both flags and ``return_dict``; the hooks are those of transformers.

    Args:
        forward: Method of a model class that returns a ``ModelOutput`` with ``hidden_states`` and ``attentions``.

    Returns:
        The method, whose tuple or output also holds what was asked for.
    """

    @capture_outputs(tie_last_hidden_states=False)
    @functools.wraps(forward)
    def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked = [kwargs.pop(flag, getattr(self.config, flag)) for flag in FLAGS]
        encoding = kwargs.get("image_encoding")
        if any(asked) and encoding is not None:  # run g, even if the encoding remembers what comes out
            kwargs["image_encoding"] = dataclasses.replace(encoding, decoded={})
        return forward(self, *args, **kwargs)

    return recorded


def unrecorded(method: Callable[..., Any]) -> Callable[..., Any]:
    """Keep a method's passes through g off the record of a `records_input` method that calls it.

    Args:
        method: Method of a model class.

    Returns:
        The method, otherwise unchanged.
    """

    @functools.wraps(method)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = functools.partial(method, self, *args, **kwargs)
        return _with_empty_record(self, call, return_dict=True, **dict.fromkeys(FLAGS, False))

    return wrapper


@capture_outputs
def _with_empty_record(_: Any, call: Callable[[], Any], **__: Any) -> Any:
    return call()
