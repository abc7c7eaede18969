"""The linear probe: its classifier is the known one, and it reads the backbone and nothing else."""

import numpy as np
import pytest
import torch
from PIL import Image

from transformers_upv2.evaluation.linear_probe import backbone_features, fit_logistic_regression, linear_probe
from transformers_upv2.model.image_processing_upv2 import UniPerceiverV2ImageProcessor
from transformers_upv2.model.processing_upv2 import UniPerceiverV2Processor


@pytest.fixture(scope="module")
def reader(roberta_tokenizer):
    image_processor = UniPerceiverV2ImageProcessor(size={"longest_edge": 64}, pad_size={"height": 96, "width": 96})
    return UniPerceiverV2Processor(image_processor, roberta_tokenizer)


def colored_images(number: int, seed: int) -> tuple[list[Image.Image], list[int]]:
    """Noise that is red, green or blue on average."""
    rng = np.random.default_rng(seed)
    labels = [index % 3 for index in range(number)]
    images = []
    for label in labels:
        pixels = rng.integers(0, 100, (48, 64, 3), dtype=np.uint8)
        pixels[..., label] += 120
        images.append(Image.fromarray(pixels))
    return images, labels


def test_the_classifier_is_that_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(90, 7, generator=generator, dtype=torch.float64)
    labels = (features[:, :3] + 0.7 * torch.randn(90, 3, generator=generator)).argmax(dim=1)
    weight, bias = fit_logistic_regression(features, labels, penalty=0.5)
    reference = linear_model.LogisticRegression(C=2.0, tol=1e-10, max_iter=10_000).fit(features, labels)
    torch.testing.assert_close(weight, torch.from_numpy(reference.coef_), atol=1e-5, rtol=0)
    ours, theirs = (features @ weight.T + bias).softmax(dim=1), reference.predict_proba(features)
    torch.testing.assert_close(ours, torch.from_numpy(theirs), atol=1e-5, rtol=0)


def test_what_a_linear_classifier_can_tell_apart_is_told_apart(session_model, reader):
    train, test = colored_images(18, seed=0), colored_images(9, seed=1)
    assert linear_probe(session_model, reader, *train, *test) == 1.0
    swapped = [(label + 1) % 3 for label in test[1]]
    assert linear_probe(session_model, reader, *train, test[0], swapped) == 0.0


def test_features_are_the_mean_of_the_last_map_whatever_the_padding(session_model, reader):
    images, _ = colored_images(2, seed=0)
    features = backbone_features(session_model, reader, [images[0].resize((64, 64)), images[1]])
    pixels = reader.image_processor(images=[images[0].resize((64, 64))], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        last_map = session_model.model.image_encoder.backbone(pixels[..., :64, :64]).feature_maps[-1]
    assert last_map.shape[-2:] == (2, 2)
    torch.testing.assert_close(features[0], last_map[0].mean(dim=(1, 2)).double())
    alone = backbone_features(session_model, reader, [images[1]])
    assert torch.equal(features[1], alone[0])
    unpadded = UniPerceiverV2ImageProcessor(size={"longest_edge": 64})
    same = backbone_features(session_model, UniPerceiverV2Processor(unpadded, reader.tokenizer), [images[1]])
    assert torch.equal(features[1], same[0])


def test_the_model_is_left_as_it_was(model, reader):
    model.train()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images, labels = colored_images(6, seed=0)
    first = linear_probe(model, reader, images, labels, images, labels)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert linear_probe(model, reader, images, labels, images, labels) == first


def test_images_and_labels_must_agree(session_model, reader):
    images, labels = colored_images(3, seed=0)
    with pytest.raises(ValueError, match=r"`train_labels` must hold one class .* got 2 for 3 images"):
        linear_probe(session_model, reader, images, labels[:2], images, labels)
    with pytest.raises(ValueError, match=r"`test_labels` must hold one class .* got 0 for 0 images"):
        linear_probe(session_model, reader, images, labels, [], [])
