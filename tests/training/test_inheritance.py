"""inherit_parts: exactly the tensors of one name and shape outside of the backbone."""

import torch
from distillation_toys import TEACHER, make_model, make_processor

from transformers_upv2.training.inheritance import inherit_parts


def tensors(model):
    return {name: value.clone() for name, value in model.base_model.state_dict().items()}


def test_all_that_fits_but_the_backbone_is_inherited():
    processor = make_processor()
    # the same backbone, which must not be copied all the same, and one width that differs
    student = make_model(processor, decoder_config={"intermediate_size": 40})
    teacher = make_model(processor)
    before, source = tensors(student), tensors(teacher)
    inherited = inherit_parts(student, teacher)
    after = tensors(student)
    assert len(set(inherited)) == len(inherited)
    for name, value in after.items():
        fits = name in source and source[name].shape == value.shape
        outside = not name.startswith("image_encoder.backbone.")
        assert (name in inherited) == (fits and outside), name
        assert torch.equal(value, source[name] if name in inherited else before[name]), name
    assert any(source[name].shape != value.shape for name, value in after.items())
    changed = [name for name in inherited if not torch.equal(before[name], after[name])]
    assert any(name.startswith("image_encoder.proposal_network.") for name in changed)
    assert any(name.startswith("text_encoder.") for name in changed)
    assert all(torch.equal(value, source[name]) for name, value in tensors(teacher).items())


def test_what_is_inherited_is_counted(caplog):
    processor = make_processor()
    student, teacher = make_model(processor), make_model(processor, **TEACHER)
    inherited = inherit_parts(student, teacher.base_model)
    report = caplog.text
    outside = [name for name in tensors(student) if not name.startswith("image_encoder.backbone.")]
    assert f"{len(inherited)} of the student's {len(outside)} tensors" in report
    missed = set(outside) - set(inherited)
    assert f"{len(missed)} have another shape" in report
    assert all(name in report for name in missed)
    assert missed  # what reads the maps of another backbone
    assert all("input_projections" in n or "lateral" in n or "global_tokens" in n for n in missed)
