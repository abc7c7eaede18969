"""What runs share is made once, by all processes together: the parts and what the locked image side saw.

Started as ``python -m torch.distributed.run --nproc_per_node 2 -m transformers_upv2.studies.prepare FOLDER ARM...``.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from transformers.utils import logging

from transformers_upv2.data.demo_world import open_world
from transformers_upv2.model.distributed import leave_together
from transformers_upv2.studies.arms import ARMS, Arm
from transformers_upv2.studies.parent import end_with_study
from transformers_upv2.studies.run import perceived_datasets
from transformers_upv2.studies.settings import StudyPaths
from transformers_upv2.studies.start import make_parts, start_model


def prepare(paths: StudyPaths, arms: Sequence[Arm]) -> None:
    """Make what the arms' runs need and is not there yet."""
    make_parts(paths, arms)
    world = open_world(paths.world)
    for arm in arms:
        if arm.locked:
            model, processor = start_model(paths, arm, world)
            perceived_datasets(paths, arm, model, processor, world)


if __name__ == "__main__":
    end_with_study()
    logging.set_verbosity_error()
    prepare(StudyPaths(Path(sys.argv[1])), [ARMS[name] for name in sys.argv[2:]])
    leave_together()
