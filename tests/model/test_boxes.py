import pytest
import torch
from torchvision import ops
from transformers.models.deformable_detr import modeling_deformable_detr

from transformers_upv2.model.boxes import (
    canvas_to_image_boxes,
    cxcywh_to_xyxy,
    generalized_box_iou,
    image_to_canvas_boxes,
    inverse_sigmoid,
    masks_to_boxes,
    pairwise_generalized_box_iou,
    xyxy_to_cxcywh,
)


def random_boxes(*shape, seed=0):
    """Draw cxcywh boxes inside the unit square."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(*shape, 2, generator=generator) * 0.5 + 0.05
    centers = sizes / 2 + torch.rand(*shape, 2, generator=generator) * (1 - sizes)
    return torch.cat((centers, sizes), dim=-1)


def test_formats_agree_with_torchvision_and_invert_each_other():
    boxes = random_boxes(3, 5)
    corners = cxcywh_to_xyxy(boxes)
    torch.testing.assert_close(corners, ops.box_convert(boxes, "cxcywh", "xyxy"))
    torch.testing.assert_close(xyxy_to_cxcywh(corners), boxes)


def test_generalized_box_iou_agrees_with_torchvision():
    boxes, others = cxcywh_to_xyxy(random_boxes(6)), cxcywh_to_xyxy(random_boxes(4, seed=1))
    expected = ops.generalized_box_iou(boxes, others)
    # 1e-6 in the denominators moves the value of the smallest boxes by about 1e-4
    torch.testing.assert_close(pairwise_generalized_box_iou(boxes, others), expected, rtol=0, atol=1e-3)
    exact = pairwise_generalized_box_iou(boxes, others, eps=0.0)
    torch.testing.assert_close(exact, expected)
    torch.testing.assert_close(generalized_box_iou(boxes[:4], others, 0.0), expected[:4].diagonal())


def test_generalized_box_iou_has_official_eps():
    box = torch.tensor([[0.0, 0.0, 1e-3, 1e-3]])
    torch.testing.assert_close(generalized_box_iou(box, box), torch.tensor([0.5]))


def test_generalized_box_iou_is_finite_for_degenerate_boxes():
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.8, 0.8, 0.2, 0.2]])
    assert pairwise_generalized_box_iou(boxes, boxes).isfinite().all()


def test_inverse_sigmoid_agrees_with_transformers():
    probs = torch.tensor([-1.0, 0.0, 1e-7, 0.3, 0.5, 0.999999, 1.0, 2.0])
    expected = modeling_deformable_detr.inverse_sigmoid(probs)
    torch.testing.assert_close(inverse_sigmoid(probs), expected)


def random_masks():
    masks = torch.zeros(2, 3, 9, 12, dtype=torch.bool)
    masks[0, 0, 2:5, 3:11] = True
    masks[0, 1, 8, 0] = True
    masks[0, 2] = torch.rand(9, 12, generator=torch.Generator().manual_seed(0)) > 0.9
    masks[1, 0, :, 4] = True
    masks[1, 1] = True
    masks[1, 2, 0, 11] = True
    return masks


def test_mask2box_agrees_with_torchvision():
    masks = random_masks()
    expected = ops.masks_to_boxes(masks.flatten(0, 1)).view(2, 3, 4)
    torch.testing.assert_close(masks_to_boxes(masks, "mask2box"), expected)


def test_bitmask_ends_behind_the_last_pixel():
    masks = random_masks()
    expected = masks_to_boxes(masks, "mask2box") + torch.tensor([0.0, 0.0, 1.0, 1.0])
    torch.testing.assert_close(masks_to_boxes(masks, "bitmask"), expected)


def test_empty_masks():
    empty = torch.zeros(1, 4, 4, dtype=torch.bool)
    assert masks_to_boxes(empty, "bitmask").tolist() == [[0, 0, 0, 0]]
    assert masks_to_boxes(empty, "mask2box").tolist() == [[1e8, 1e8, 0, 0]]
    logits = inverse_sigmoid(xyxy_to_cxcywh(masks_to_boxes(empty, "mask2box")) / 4)
    assert logits.isfinite().all()


def test_masks_to_boxes_names_the_variants():
    with pytest.raises(ValueError, match="must be 'bitmask' or 'mask2box', got 'box'"):
        masks_to_boxes(torch.zeros(1, 2, 2, dtype=torch.bool), "box")


def test_canvas_conversion_keeps_pixels():
    boxes = random_boxes(2, 5)
    image_sizes = torch.tensor([[60, 100], [128, 64]])
    on_canvas = image_to_canvas_boxes(boxes, image_sizes, (128, 160))
    pixels = on_canvas * torch.tensor([160.0, 128.0, 160.0, 128.0])
    widths_heights = image_sizes.flip(1).repeat(1, 2)[:, None]
    torch.testing.assert_close(pixels, boxes * widths_heights)
    torch.testing.assert_close(canvas_to_image_boxes(on_canvas, image_sizes, (128, 160)), boxes)


def test_canvas_conversion_of_one_image():
    on_canvas = image_to_canvas_boxes(torch.tensor([[0.5, 0.5, 1.0, 1.0]]), torch.tensor([32, 64]), (64, 64))
    assert on_canvas.tolist() == [[0.5, 0.25, 1.0, 0.5]]


def test_canvas_may_differ_from_image_to_image():
    boxes, image_sizes = random_boxes(2, 5), torch.tensor([[60, 100], [128, 64]])
    canvases = torch.tensor([[64, 128], [128, 64]])
    together = image_to_canvas_boxes(boxes, image_sizes, canvases)
    for index, canvas in enumerate(canvases.tolist()):
        alone = image_to_canvas_boxes(boxes[index], image_sizes[index], tuple(canvas))
        torch.testing.assert_close(together[index], alone)
    torch.testing.assert_close(canvas_to_image_boxes(together, image_sizes, canvases), boxes)
