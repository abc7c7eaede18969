"""Uploading: complete folders only, in one commit, and what arrives loads with and without the package."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from transformers import RobertaTokenizer

from hub_server import LocalHub
from source_files import ROOT
from transformers_upv2 import UniPerceiverV2ForMultiTask, UniPerceiverV2ImageProcessor, UniPerceiverV2Processor
from transformers_upv2.hub import check_folder, code_files, custom_pipelines, push_to_hub, upload_folder

SHIPPED = ROOT / "model_cards" / "uniperceiver-v2-tiny"
CARD = '# A model\n\n```python\nfolder = "here"  # shown.png\n```\n'


@pytest.fixture(scope="session")
def saved_folder(
    session_model: UniPerceiverV2ForMultiTask, roberta_tokenizer: RobertaTokenizer, tmp_path_factory: Any
) -> Path:
    """Read only: a complete folder."""
    folder = tmp_path_factory.mktemp("saved")
    session_model.save_pretrained(folder)
    UniPerceiverV2Processor(UniPerceiverV2ImageProcessor(), roberta_tokenizer).save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture
def folder(saved_folder: Path, tmp_path: Path) -> Path:
    """A complete folder that a test may change."""
    return Path(shutil.copytree(saved_folder, tmp_path / "model"))


# A folder that is not complete


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "README.md"]
)
def test_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ValueError, match=rf"`folder` must be complete to be uploaded, .* lacks {name}: "):
        check_folder(folder)


def test_everything_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json.*tokenizer\.json.*README\.md.*model\.safetensors"):
        check_folder(tmp_path)
    with pytest.raises(ValueError, match="nowhere, which does not exist"):
        check_folder(tmp_path / "nowhere")


def test_label_sets_must_be_there(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"label_sets": {}}))
    with pytest.raises(ValueError, match=r"label sets in config\.json"):
        check_folder(folder)


def test_another_model_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"must hold a model of type 'uniperceiver_v2', .* holds 'bert'"):
        check_folder(folder)


def test_damaged_weights_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="whole weights, these are damaged"):
        check_folder(folder)


def test_pickled_weights_are_refused(folder: Path) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"safetensors only, .* holds pytorch_model\.bin"):
        check_folder(folder)


def test_missing_shard_is_named(folder: Path) -> None:
    with upload_folder(folder, max_shard_size=100_000) as prepared:
        shards = sorted(prepared.glob("*.safetensors"))
        shards[1].unlink()
        with pytest.raises(ValueError, match=f"lacks {shards[1].name}: weights"):
            check_folder(prepared)


# What is uploaded


def test_the_folder_stays_as_it_is_and_private_files_stay_at_home(folder: Path) -> None:
    for name in ("shown.png", "private.png", "trainer_state.json", "training.json", "optimizer.pt"):
        (folder / name).write_text("content")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with upload_folder(folder, "me/model") as prepared:
        uploaded = {file.name for file in prepared.iterdir()}
        assert 'folder = "me/model"' in (prepared / "README.md").read_text()
        assert (prepared / "model.safetensors").read_bytes() == before["model.safetensors"]
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert "shown.png" in uploaded
    assert not uploaded & {"private.png", "trainer_state.json", "training.json", "optimizer.pt"}
    assert {"modeling_upv2.py", "pipelines_upv2.py", "processing_upv2.py"} < uploaded
    assert not uploaded & {"registration.py", "__init__.py"}


def test_code_needs_nothing_of_the_package() -> None:
    names = {file.name for file in code_files()}
    assert len(names) > 30
    for file in code_files():
        assert not re.search(r"^\s*(from|import) transformers_upv2", file.read_text(), re.MULTILINE), file


def test_large_weights_are_split_and_stay_the_same(folder: Path) -> None:
    with upload_folder(folder, max_shard_size=100_000) as prepared:
        shards = sorted(prepared.glob("*.safetensors"))
        assert len(shards) > 2
        assert not (prepared / "model.safetensors").exists()
        joined = {name: value for shard in shards for name, value in load_file(shard).items()}
        model = UniPerceiverV2ForMultiTask.from_pretrained(prepared)
        check_folder(prepared)
    weights = load_file(folder / "model.safetensors")
    assert joined.keys() == weights.keys()
    assert all(torch.equal(joined[name], value) for name, value in weights.items())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())


def test_the_package_forgets_the_uploaded_code(folder: Path) -> None:
    """Else transformers would refuse our pipelines unless `trust_remote_code` is given."""
    with upload_folder(folder) as prepared:
        config = json.loads((prepared / "config.json").read_text())
        assert config["custom_pipelines"].keys() == custom_pipelines().keys()
        model = UniPerceiverV2ForMultiTask.from_pretrained(prepared)
    assert not getattr(model.config, "custom_pipelines", None)
    assert not getattr(model.config, "auto_map", None)


# The upload


def test_upload_arrives_whole_and_replaces_what_is_outdated(folder: Path, hub: LocalHub) -> None:
    assert push_to_hub(folder, "me/model", max_shard_size=100_000).startswith(f"{hub.url}/me/model/commit/")
    assert "model-00001-of" in " ".join(hub.files("me/model"))
    push_to_hub(folder, "me/model")
    with upload_folder(folder, "me/model") as prepared:
        expected = {file.name: file.read_bytes() for file in prepared.iterdir()}
    assert hub.files("me/model") == expected
    assert len(hub.repositories["me/model"].commits) == 2


def test_incomplete_folder_sends_nothing(folder: Path, hub: LocalHub) -> None:
    (folder / "README.md").unlink()
    with pytest.raises(ValueError, match=r"lacks README\.md"):
        push_to_hub(folder, "me/model")
    assert not hub.requests


@pytest.mark.parametrize("step", ["PUT large", "POST verify", "POST api/models/me/model/commit"])
def test_failed_upload_commits_nothing_and_can_be_repeated(folder: Path, hub: LocalHub, step: str) -> None:
    hub.failures[step] = [400]
    with pytest.raises(OSError, match=r"Push again|injected|400"):
        push_to_hub(folder, "me/model")
    assert not hub.files("me/model")
    push_to_hub(folder, "me/model")
    assert "model.safetensors" in hub.files("me/model")


def test_unreachable_hub_is_an_os_error(folder: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    with pytest.raises(OSError, match=r"upload to me/model must .* broke off \(.*refused"):
        push_to_hub(folder, "me/model")


def test_broken_transfer_is_noticed_by_its_hash(folder: Path, hub: LocalHub) -> None:
    hub.failures["PUT large"] = [0]
    with pytest.raises(OSError, match=r"(?s)upload to me/model must .* broke off \(.*another SHA-256"):
        push_to_hub(folder, "me/model")
    assert not hub.files("me/model")


# What arrives, in fresh processes with an empty cache

ANSWERS = """
import hashlib, json, sys
from pathlib import Path
repo, image, trust, names = sys.argv[1], sys.argv[2], sys.argv[3] == "True", ["star", "two"]
if trust:
    class Blocker:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "transformers_upv2":
                raise ModuleNotFoundError(f"No module named {name!r}")
    sys.meta_path.insert(0, Blocker())
else:
    import transformers_upv2
from huggingface_hub import hf_hub_download
from transformers import AutoProcessor, AutoImageProcessor, pipeline

options = {"trust_remote_code": True} if trust else {}
drop_mask = lambda found: [{key: value for key, value in item.items() if key != "mask"} for item in found]
search = pipeline("image-text-retrieval", model=repo, **options)
search.build_index([image], progress=False)
calls = {
    "object-detection": lambda pipe: pipe(image, threshold=0.3),
    "image-segmentation": lambda pipe: drop_mask(pipe(image, threshold=0.3)),
    "image-classification": lambda pipe: pipe(image),
    "zero-shot-image-classification": lambda pipe: pipe(image, candidate_labels=names),
    "zero-shot-object-detection": lambda pipe: pipe(image, candidate_labels=names, threshold=0.1),
    "image-text-to-text": lambda pipe: pipe(image, text=""),
    "image-captioning": lambda pipe: pipe(image),
    "fill-mask": lambda pipe: pipe("a square has<mask> corners ."),
    "feature-extraction": lambda pipe: pipe("a red star"),
    "image-feature-extraction": lambda pipe: pipe(image)[0][0][:4],
}
answers = {task: call(pipeline(task, model=repo, **options)) for task, call in calls.items()}
answers["image-text-retrieval"] = search("a red star")
processor = AutoProcessor.from_pretrained(repo, **options)
AutoImageProcessor.from_pretrained(repo, **options)
answers["module"] = type(processor).__module__.split(".")[0]
digest = lambda name: hashlib.sha256(Path(hf_hub_download(repo, name)).read_bytes()).hexdigest()
answers["files"] = {name: digest(name) for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md")}
print(json.dumps(answers))
"""


def ask(repo: str, image: Path, cache: Path, url: str, trust: bool) -> dict[str, Any]:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": url,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    command = [sys.executable, "-c", ANSWERS, repo, str(image), str(trust)]
    run = subprocess.run(command, env=environment, cwd=cache, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    assert trust or "not supported" not in run.stderr, run.stderr  # a false alarm that only the package can prevent
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.slow
def test_uploaded_checkpoint_answers_alike_with_and_without_the_package(tmp_path: Path, hub: LocalHub) -> None:
    push_to_hub(SHIPPED, "me/tiny")
    caches = [tmp_path / "with", tmp_path / "without"]
    for cache in caches:
        cache.mkdir()
    image = SHIPPED / "example.jpg"
    ours = ask("me/tiny", image, caches[0], hub.url, trust=False)
    theirs = ask("me/tiny", image, caches[1], hub.url, trust=True)
    assert (ours.pop("module"), theirs.pop("module")) == ("transformers_upv2", "transformers_modules")
    assert ours == theirs
    for name, digest in ours["files"].items():
        assert digest == hashlib.sha256(hub.files("me/tiny")[name]).hexdigest()
    assert hub.files("me/tiny")["model.safetensors"] == (SHIPPED / "model.safetensors").read_bytes()
    assert ours["object-detection"], "the example holds objects"
