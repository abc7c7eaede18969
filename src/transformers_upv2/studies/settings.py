"""How large the studies are, and where their files lie."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from transformers_upv2.data.demo_world import WorldSizes

WORLD_SIZES = WorldSizes(scenes=(1500, 50, 150), classification=(1500, 50, 240), text=(6000, 200, 200))


@dataclass(frozen=True)
class StudySettings:
    """The size of everything that the runs of a folder share.

    Attributes:
        encoders: Folder or repository of the checkpoint whose encoders are the pretrained ones.
        world: Images and lines of the demo world.
        text_updates: Of a new g and the text encoder on text alone, once.
        detection_updates: Of the image side on objects alone, once.
        foreground_updates: Of the same with one foreground logit in place of classes, once.
        updates_per_task: Of every run.
    """

    encoders: str
    world: WorldSizes = WORLD_SIZES
    text_updates: int = 100
    detection_updates: int = 1200
    foreground_updates: int = 150
    updates_per_task: int = 70


@dataclass(frozen=True)
class StudyPaths:
    """Where the files of the studies lie below their folder ``root``."""

    root: Path

    @property
    def settings(self) -> Path:
        """The settings that everything here was made with."""
        return self.root / "settings.json"

    @property
    def world(self) -> Path:
        """The demo world."""
        return self.root / "world"

    @property
    def text_part(self) -> Path:
        """The model that knows text alone."""
        return self.root / "parts" / "text" / "final"

    @property
    def detection_part(self) -> Path:
        """The same after the image side has learned to detect, with one foreground logit."""
        return self.root / "parts" / "foreground" / "final"

    def encodings(self, representation: str) -> Path:
        """What the locked image side saw."""
        return self.root / "encodings" / representation

    def run(self, arm: str, seed: int) -> Path:
        """The folder of one run."""
        return self.root / "runs" / f"{arm}-seed{seed}"

    def metrics(self, arm: str, seed: int) -> Path:
        """The figures of one run; written last."""
        return self.run(arm, seed) / "metrics.json"

    def read_settings(self) -> StudySettings:
        """Read the settings."""
        fields = json.loads(self.settings.read_text())
        world = WorldSizes(**{name: tuple(sizes) for name, sizes in fields.pop("world").items()})
        return StudySettings(world=world, **fields)

    def keep_settings(self, settings: StudySettings) -> None:
        """Write the settings, or make sure that they are those of before.

        Raises:
            ValueError: If the folder was made with others.
        """
        if not self.settings.exists():
            self.root.mkdir(parents=True, exist_ok=True)
            self.settings.write_text(json.dumps(dataclasses.asdict(settings), indent=2))
        before = self.read_settings()
        if before != settings:
            raise ValueError(
                f"The runs in {self.root} must all have its settings, {before}, got {settings}. Choose another folder."
            )
