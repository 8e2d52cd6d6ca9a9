"""The recipe of the video model: the reference model learns to watch.

    python -m foveate.models.reference_video.train --out runs/reference-video             # resumable: run it again
    python -m foveate.models.reference_video.train --out runs/reference-video --export    # -> the package's weights
    python -m foveate.models.reference_video.train --out runs/more --start package --video 12000  # go on from them

It starts from the package's weights of the reference model and goes on with videos of eight frames, some of up to
sixty-four, and pictures at the same size; in most steps with videos the decoder is shown a part of the tokens
(`thinning`).
On a GPU, give more steps and `--batch 128`; `--device auto` picks it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import DataLoader
from transformers import LlavaProcessor

from foveate.models.reference import WEIGHTS as PICTURES
from foveate.models.reference.architecture import DECODER_LAYERS, build_text_tower
from foveate.models.reference.batches import Batch
from foveate.models.reference.objectives import Learner
from foveate.models.reference.shipping import restore
from foveate.models.reference.train import STAGES, Common, Run, follow, parse
from foveate.models.reference_video import WEIGHTS
from foveate.models.reference_video.architecture import adopt, fresh, processor, tokenizer
from foveate.models.reference_video.batches import batches
from foveate.models.reference_video.evaluate import accuracy
from foveate.models.reference_video.thinning import thinned


@dataclass
class Settings(Common):
    """One run of `video` steps, `batch` videos each. `check`: videos a regime that are looked at on the way. `start`:
    "pictures", or "package" to go on from the package's own weights where `out` holds no checkpoint."""

    video: int = 10_400
    start: str = "pictures"
    batch: int = 16
    muon_lr: float = 2e-3
    adam_lr: float = 1e-3
    check: int = 24


class VideoRun(Run):
    """See `Run`; one stage."""

    stages = ("video",)
    weights = WEIGHTS

    def begin(self, resumed: bool) -> Learner:
        """See `Run.begin`: the reference model with small frames."""
        if resumed:
            return Learner(fresh(), build_text_tower(tokenizer()))
        if self.settings.start == "package":
            return self.shipped({"video": DECODER_LAYERS})
        module, _ = restore(PICTURES, dict.fromkeys(STAGES, DECODER_LAYERS))
        return adopt(module)

    def loader(self, steps: int) -> DataLoader:
        """See `Run.loader`."""
        about = self.settings
        return batches(tokenizer(), about.seed, self.step, steps, about.batch, about.workers)

    def update(self, batch: Batch, factor: float) -> dict[str, float]:
        """See `Run.update`: in some steps the decoder is shown a part of the tokens."""
        batch = thinned(batch.to(self.device), self.module.model, self.settings.seed, self.step)
        return super().update(batch, factor)

    def check(self) -> dict[str, float]:
        """See `Run.check`."""
        return accuracy(self.module.model, tokenizer(), "validation", self.settings.check)

    def processor(self) -> LlavaProcessor:
        """See `Run.processor`."""
        return processor()


def main(argv: list[str] | None = None) -> None:
    """The command."""
    follow(VideoRun, *parse(argv, Settings(Path("runs/reference-video")), __doc__))


if __name__ == "__main__":
    main()
