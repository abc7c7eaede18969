"""What a user may rely on: names, a light import, types, one version."""

import configparser
import importlib.metadata
import re
import subprocess
import sys

import pytest
from transformers import AutoConfig
from transformers.pipelines import PIPELINE_REGISTRY

import transformers_upv2
from source_files import PACKAGE, ROOT, SOURCES
from transformers_upv2.model.registration import MODELS, register

HEAVY = (
    *("pycocotools", "datasets", "matplotlib", "sklearn", "skimage", "pycocoevalcap"),
    *("gradio", "onnx", "onnxscript", "onnxruntime", "faiss", "peft"),
    "transformers_upv2.training",
)


@pytest.fixture(scope="module")
def setup_cfg():
    parser = configparser.RawConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


@pytest.mark.parametrize("name", transformers_upv2.__all__)
def test_public_name_can_be_imported(name):
    assert getattr(transformers_upv2, name) is not None
    assert name in dir(transformers_upv2)


def test_public_classes_are_the_ones_that_their_names_say():
    for name in transformers_upv2.__all__:
        value = getattr(transformers_upv2, name)
        if isinstance(value, type):
            assert value.__name__ == name
            assert value.__doc__


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'transformers_upv2' has no attribute 'UniPerceiverV3'"):
        _ = transformers_upv2.UniPerceiverV3


def test_import_is_light():
    """Reading, plotting and training libraries wait until they are used."""
    code = f"import sys, transformers_upv2; print([name for name in {HEAVY!r} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_registering_twice_changes_nothing():
    def state():
        config = transformers_upv2.UniPerceiverV2Config
        models = {auto_class.__name__: auto_class._model_mapping[config] for auto_class in MODELS}
        return models, dict(PIPELINE_REGISTRY.supported_tasks)

    before = state()
    register()
    assert state() == before
    assert before[1]["image-captioning"]["pt"] == (transformers_upv2.UniPerceiverV2ForConditionalGeneration,)
    assert AutoConfig.for_model("uniperceiver_v2").__class__ is transformers_upv2.UniPerceiverV2Config


def test_types_are_shipped(setup_cfg):
    assert (PACKAGE / "py.typed").is_file()
    assert "py.typed" in setup_cfg["options.package_data"]["transformers_upv2"].split()


def test_version_has_one_place(setup_cfg):
    assert setup_cfg["metadata"]["version"] == "attr: transformers_upv2.version.__version__"
    assert importlib.metadata.version("transformers_upv2") == transformers_upv2.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", transformers_upv2.__version__)
    assignments = [path.name for path in SOURCES if re.search(r"^__version__\s*[:=]", path.read_text(), re.MULTILINE)]
    assert assignments == ["version.py"]
