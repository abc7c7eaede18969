import pytest
import torch

from transformers_upv2.model.boxes import cxcywh_to_xyxy, generalized_box_iou
from transformers_upv2.model.proposal_denoising import DenoisingNoise
from transformers_upv2.model.proposal_matcher import ProposalLossSettings
from transformers_upv2.model.proposal_network import ProposalNetwork, ProposalSettings
from transformers_upv2.model.proposal_query_decoder import predict_masks

CHANNELS = [6, 8, 10, 12]
TINY = {
    "hidden_size": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_heads": 4,
    "num_points": 2,
    "encoder_ffn_size": 16,
    "decoder_ffn_size": 16,
    "num_queries": 12,
    "dn_number": 8,
}


def build(**changes):
    torch.manual_seed(0)
    settings = ProposalSettings(**(TINY | changes))
    return ProposalNetwork(CHANNELS, settings, ProposalLossSettings(num_points=32))


def feature_maps(batch=2):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, channels, 96 // stride, 64 // stride, generator=generator)
        for channels, stride in zip(CHANNELS, (4, 8, 16, 32))
    ]


def targets(counts=(2, 1)):
    """Draw rectangles whose masks and boxes agree."""
    generator = torch.Generator().manual_seed(1)
    result = []
    for count in counts:
        masks, boxes = torch.zeros(count, 96, 64, dtype=torch.bool), []
        for mask in masks:
            top, left = (torch.rand(2, generator=generator) * 32).long().tolist()
            mask[top : top + 40, left : left + 24] = True
            boxes.append([(left + 12) / 64, (top + 20) / 96, 24 / 64, 40 / 96])
        result.append(
            {
                "class_labels": torch.zeros(count, dtype=torch.int64),
                "boxes": torch.tensor(boxes).reshape(-1, 4),
                "masks": masks,
            }
        )
    return result


@pytest.mark.parametrize("num_feature_levels", [4, 5])
@pytest.mark.parametrize("num_classes", [1, 3])
def test_output_shapes(num_feature_levels, num_classes):
    network = build(num_feature_levels=num_feature_levels, num_classes=num_classes)
    output = network(feature_maps())
    assert output.semantic.shape == (2, 12, 32)
    assert output.boxes.shape == (2, 12, 4)
    assert output.class_logits.shape == (2, 12, num_classes)
    assert output.mask_embeddings.shape == (2, 12, 32)
    assert output.mask_features.shape == (2, 32, 24, 16)
    assert predict_masks(output.mask_embeddings, output.mask_features).shape == (2, 12, 24, 16)
    assert output.training is None


def test_batch_of_two_equals_two_batches_of_one():
    network = build().eval()
    maps = feature_maps()
    both = network(maps)
    single = network([level[1:] for level in maps])
    torch.testing.assert_close(both.boxes[1:], single.boxes, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both.semantic[1:], single.semantic, rtol=1e-4, atol=1e-5)


def test_targets_do_not_change_the_proposals():
    network = build()
    plain, trained = network(feature_maps()), network(feature_maps(), targets())
    torch.testing.assert_close(trained.boxes, plain.boxes, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(trained.semantic, plain.semantic, rtol=1e-5, atol=1e-5)
    assert trained.training.denoising.boxes.shape[2] == 8  # four groups of two


@pytest.mark.parametrize("counts", [(2, 1), (0, 3), (0, 0), (9, 1)])
def test_every_parameter_gets_a_finite_gradient(counts):
    network = build()
    output = network(feature_maps(), targets(counts))
    terms, indices = network.losses(output, targets(counts))
    assert len(terms) == 5 * (4 + 3)
    assert [len(queries) for queries, _ in indices] == list(counts)
    network.weighted_sum(terms).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_noise_is_injectable_and_follows_the_generator():
    network = build()
    noise = DenoisingNoise.draw((2, 4, 2), generator=torch.Generator().manual_seed(3))
    injected = network(feature_maps(), targets(), dn_noise=noise)
    drawn = network(feature_maps(), targets(), generator=torch.Generator().manual_seed(3))
    other = network(feature_maps(), targets(), generator=torch.Generator().manual_seed(4))
    boxes = injected.training.denoising.boxes
    assert torch.equal(boxes, drawn.training.denoising.boxes)
    assert not torch.equal(boxes, other.training.denoising.boxes)


def test_no_denoising_when_switched_off_or_too_many_targets():
    assert build(dn_number=0)(feature_maps(), targets()).training.denoising is None
    assert build()(feature_maps(), targets((9, 0))).training.denoising is None


def test_losses_need_targets_in_the_forward_call():
    network = build()
    with pytest.raises(ValueError, match="forward call with `targets`"):
        network.losses(network(feature_maps()), targets())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_weights_train(dtype):
    network = build().to(dtype)
    output = network([level.to(dtype) for level in feature_maps()], targets())
    assert output.boxes.dtype == torch.float32
    assert output.semantic.dtype == dtype
    terms, _ = network.losses(output, targets())
    total = network.weighted_sum(terms)
    assert total.isfinite()
    total.backward()


def test_autocast_trains():
    network = build()
    with torch.autocast("cpu", torch.bfloat16):
        output = network(feature_maps(), targets())
        terms, _ = network.losses(output, targets())
        total = network.weighted_sum(terms)
    assert output.boxes.dtype == torch.float32
    assert total.isfinite()
    total.backward()


@pytest.mark.parametrize(
    ("channels", "num_levels", "pixel_decoder", "query_decoder"),
    [
        ([256, 512, 1024, 2048], 4, 14_055_424, 14_547_668),
        ([192, 384, 768, 1536], 5, 12_828_224, 14_769_716),
    ],
)
def test_parameter_counts_of_official_models(channels, num_levels, pixel_decoder, query_decoder):
    settings = ProposalSettings(num_feature_levels=num_levels, encoder_ffn_size=2048, num_classes=80)
    with torch.device("meta"):
        network = ProposalNetwork(channels, settings)
    assert sum(p.numel() for p in network.pixel_decoder.parameters()) == pixel_decoder
    assert sum(p.numel() for p in network.query_decoder.parameters()) == query_decoder


def test_there_are_no_buffers():
    assert list(build().buffers()) == []


@pytest.mark.slow
def test_overfits_two_images():
    network = build(decoder_layers=3)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    maps, truth = feature_maps(), targets()
    for _ in range(150):
        output = network(maps, truth)
        terms, _ = network.losses(output, truth)
        optimizer.zero_grad()
        network.weighted_sum(terms).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    output = network(maps, truth)
    terms, _ = network.losses(output, truth)
    assert terms["loss_giou"] < 0.2
    assert terms["loss_dice"] < 0.2
    for image in range(2):
        best = output.class_logits[image, :, 0].argmax()
        corners = cxcywh_to_xyxy(output.boxes[image, best])
        overlaps = generalized_box_iou(corners, cxcywh_to_xyxy(truth[image]["boxes"]))
        assert overlaps.max() > 0.8
