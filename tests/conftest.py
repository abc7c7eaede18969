"""Fixtures for all folders: one seed for every test, a tokenizer made in code, one tiny model."""

import copy
import functools
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from transformers import RobertaTokenizer

from hub_server import LocalHub, running_hub
from tiny_models import CLASS_NAMES, TEXTS, scatter_weights, task_batches, tiny_config
from transformers_upv2.data.world_tokenizer import train_tokenizer
from transformers_upv2.model.generation_upv2 import UniPerceiverV2ForConditionalGeneration
from transformers_upv2.model.image_processing_upv2 import UniPerceiverV2ImageProcessor
from transformers_upv2.model.modeling_tasks_upv2 import UniPerceiverV2ForMultiTask
from transformers_upv2.model.processing_upv2 import UniPerceiverV2Processor


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def roberta_tokenizer() -> RobertaTokenizer:
    """RobertaTokenizer with its special ids, trained on a few sentences."""
    return train_tokenizer(TEXTS + CLASS_NAMES, vocabulary_size=320, max_length=32)


@pytest.fixture(scope="session")
def session_model(roberta_tokenizer: RobertaTokenizer) -> UniPerceiverV2ForMultiTask:
    """Read only: a tiny model in evaluation mode with both label sets."""
    torch.manual_seed(0)
    config = tiny_config(text_config={"vocab_size": len(roberta_tokenizer)})
    model = scatter_weights(UniPerceiverV2ForMultiTask(config)).eval()
    model.set_labels(CLASS_NAMES, roberta_tokenizer, label_set="classification")
    model.set_labels([*CLASS_NAMES[::-1], "tree"], roberta_tokenizer, label_set="detection")
    return model


@pytest.fixture
def model(session_model: UniPerceiverV2ForMultiTask) -> UniPerceiverV2ForMultiTask:
    """A copy that a test may change."""
    return copy.deepcopy(session_model)


@pytest.fixture(scope="session")
def batches(roberta_tokenizer: RobertaTokenizer) -> dict:
    """A training batch of every task, two samples each; read only."""
    return task_batches(roberta_tokenizer)


@pytest.fixture(scope="session")
def model_folder(
    session_model: UniPerceiverV2ForMultiTask,
    roberta_tokenizer: RobertaTokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Read only: the tiny model and its processor, saved."""
    folder = tmp_path_factory.mktemp("model_folder")
    UniPerceiverV2ForConditionalGeneration.from_model(copy.deepcopy(session_model)).save_pretrained(folder)
    image_processor = UniPerceiverV2ImageProcessor(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})
    UniPerceiverV2Processor(image_processor, roberta_tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only: three images of noise, ``0.png`` to ``2.png``, 60 wide and 40, 60 and 80 high."""
    folder = tmp_path_factory.mktemp("image_folder")
    rng = np.random.default_rng(0)
    for index in range(3):
        pixels = rng.integers(0, 256, (40 + 20 * index, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Where a server offers the files of the test's folder."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A running Hub that the client of this process talks to."""
    with running_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # else the client of another test's Hub
        monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
        yield server
