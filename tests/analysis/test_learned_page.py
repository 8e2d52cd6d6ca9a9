"""The page of learned methods says what their weights files say."""

from pathlib import Path

import pytest

from foveate.analysis.learned import entries, main, page
from foveate.models.reference import WEIGHTS
from foveate.models.reference_video import WEIGHTS as VIDEO_WEIGHTS

SHIPPED, VIDEO = WEIGHTS.parent / "learned", VIDEO_WEIGHTS.parent / "learned"


def test_a_row_for_each_figure_with_parameters_read_off_the_tensors():
    found = {method: (parameters, told) for method, parameters, told in entries(SHIPPED)}
    assert "decode:sparsemm" not in found  # measured, not trained
    parameters, told = found["projector:ldpv2"]
    assert parameters == 42880 and len(told["figures"]) == 4
    text = page(SHIPPED, "reference")
    first = told["figures"][0]
    assert f"| projector:ldpv2 | 42880 | 300 + 400 | 16 | 1 | {first['keep']:.3f} |" in text
    assert f"**{first['kl']:.3f}**" in text
    assert text.count("\n|") - 2 == sum(len(told["figures"]) for _, told in found.values())


@pytest.mark.parametrize(("model", "folder"), [("reference", SHIPPED), ("reference-video", VIDEO)])
def test_the_page_in_docs_is_current(model, folder):
    name = "learned.md" if model == "reference" else "learned_video.md"
    path = Path(__file__).parents[2] / "docs" / "bench" / name
    assert path.read_text(encoding="utf-8") == page(folder, model)


def test_a_folder_without_weights_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match=f"learned: {tmp_path}: no weights of learned methods there"):
        main(["--learned", str(tmp_path)])
