"""One small world for all tests of this folder."""

import pytest

from transformers_upv2.data.demo_world import World, WorldSizes, make_world, open_world

SMALL = WorldSizes(scenes=(40, 20, 100), classification=(24, 12, 24), text=(400, 50, 50))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    paths = make_world(tmp_path_factory.mktemp("data") / "world", 0, SMALL, progress=False)
    return open_world(paths.root)
