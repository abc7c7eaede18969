"""Fixtures for all folders: one seed for every test, a tokenizer made in code, one tiny model."""

import copy
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from transformers import RobertaTokenizer

from tiny_models import CLASS_NAMES, TEXTS, scatter_weights, task_batches, tiny_config
from transformers_upv2.data.world_tokenizer import train_tokenizer
from transformers_upv2.model.modeling_tasks_upv2 import UniPerceiverV2ForMultiTask


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
