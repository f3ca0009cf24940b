"""`python -m fantasyid_lab.protocols.faces` on real video files."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from fantasyid_core.errors import ImageError
from fantasyid_core.meters import facesim_networks
from fantasyid_core.meters.facesim import ARC
from fantasyid_lab.protocols import faces


def write_video(file: Path, greys: list[int]) -> None:
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = 64
        for grey in greys:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), grey, np.uint8), "rgb24")))
        container.mux(stream.encode())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A photo and videos whose brightness is a similarity of 1, of 0 and, black, no face."""

    def read_face(picture):
        mean = float(picture.float().mean())
        return None if mean < 20 else {ARC: torch.tensor([1.0, 0.0] if mean > 150 else [0.0, 1.0])}

    readers = facesim_networks.Readers(read_face, {"det_10g.onnx": "5838f7fe"}, "a remark")
    monkeypatch.setattr(facesim_networks, "load", lambda folders, device: readers)
    Image.new("RGB", (64, 64), (200, 200, 200)).save(tmp_path / "anna.png")
    write_video(tmp_path / "anna.mp4", [200] * 16)
    write_video(tmp_path / "anna_2.mp4", [0] * 8 + [200] * 4 + [90] * 4)
    write_video(tmp_path / "annabel.mp4", [200] * 16)
    return tmp_path


def test_every_video_is_a_line_and_one_without_a_photo_says_so(folder, capsys):
    out = folder / "scores.json"
    options = ["--protocol", "consisid", "--videos", str(folder), "--references", str(folder), "--json", str(out)]
    assert faces.main(options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "| anna.mp4 | 1.0000 | 100% | |" in lines
    assert "| anna_2.mp4 | 0.5000 | 50% | |" in lines
    assert any(line.startswith("| annabel.mp4 |") and "annabel.png" in line for line in lines)
    assert "| **mean of 2** | **0.7500** | 75% | |" in lines
    assert "ConsisID: 16 frames of each video." in lines
    assert lines[-1] == "a remark"
    saved = json.loads(out.read_text())
    assert saved["videos"][1]["facesim"] == {"similarity": {ARC: 0.5}, "with_face": 0.5}
    assert saved["sha256"] == {"det_10g.onnx": "5838f7fe"}


def test_a_folder_without_videos_says_what_was_expected(tmp_path, capsys, folder):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert faces.main(["--protocol", "opens2v", "--videos", str(empty), "--references", str(folder)]) == 1
    assert "holds no video" in capsys.readouterr().err


def test_the_longest_name_that_a_video_begins_with_is_its_photo():
    photos = [Path("a.png"), Path("a_b.png"), Path("c.png")]
    assert faces.reference_of(Path("a_b-1.mp4"), photos).name == "a_b.png"
    assert faces.reference_of(Path("a.mp4"), photos).name == "a.png"
    with pytest.raises(ImageError, match="has no photo"):
        faces.reference_of(Path("ab.mp4"), photos)
