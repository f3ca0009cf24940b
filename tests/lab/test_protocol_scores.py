"""`python -m fantasyid_lab.protocols.scores` on real video files and a drawn CLIP."""

import json

import av
import cv2
import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from fantasyid_lab.protocols import scores
from fantasyid_lab.training.clip_files import read_frames

WORDS = [
    "<|startoftext|>",
    "<|endoftext|>",
    *"abcdefghijklmnopqrstuvwxyz",
    *(c + "</w>" for c in "abcdefghijklmnopqrst"),
]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """CLIP's layout with drawn weights of small sizes."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(WORDS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    small = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    text = small | {"vocab_size": len(WORDS), "eos_token_id": 1, "bos_token_id": 0}
    config = CLIPConfig(text_config=text, vision_config=small | {"image_size": 32, "patch_size": 8}, projection_dim=16)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        CLIPModel(config).save_pretrained(folder)
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    square = {"height": 32, "width": 32}
    CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A red square that goes to the right, and one that stands."""
    folder = tmp_path_factory.mktemp("videos")
    for name, step in (("goes", 2), ("stands", 0)):
        with av.open(str(folder / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=8, options={"crf": "1"})
            stream.width, stream.height = 96, 64
            for i in range(20):
                picture = np.full((64, 96, 3), 40, np.uint8)
                picture[16:48, 8 + step * i : 48 + step * i] = (220, 60, 20)
                picture[24:40:4, 16 + step * i : 40 + step * i : 4] = 255
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
            container.mux(stream.encode())
        (folder / f"{name}.txt").write_text("a red square")
    return folder


def test_clipscore_is_that_of_consisid_in_bgr_and_right_in_rgb(videos, clip_folder, capsys, tmp_path):
    out = tmp_path / "scores.json"
    assert scores.main(["--videos", str(videos), "--clip", str(clip_folder), "--json", str(out)]) == 0
    assert "| **mean of 2** |" in capsys.readouterr().out
    goes = json.loads(out.read_text())[0]

    # ConsisID's script, written down a second time: frames at i · total / 16, in OpenCV's BGR.
    numbers = [int(i * 20 / 16) for i in range(16)]
    frames = {n: frame.numpy() for n, frame in read_frames(videos / "goes.mp4", numbers)}
    bgr = [cv2.cvtColor(frames[n], cv2.COLOR_RGB2BGR) for n in numbers]
    model, processor = CLIPModel.from_pretrained(clip_folder).eval(), CLIPProcessor.from_pretrained(clip_folder)
    with torch.no_grad():
        inputs = processor(text="a red square", images=bgr, return_tensors="pt", padding=True, truncation=True)
        expected = model(**inputs).logits_per_image.mean().item()
    assert goes["clip_bgr"] == pytest.approx(expected, abs=1e-5)
    assert abs(goes["clip_rgb"] - goes["clip_bgr"]) > 1e-3


def test_motion_is_the_mean_flow_and_none_where_nothing_moves(videos, capsys):
    assert scores.main(["--videos", str(videos)]) == 0
    lines = dict(line.split("|")[1:5:3] for line in capsys.readouterr().out.splitlines()[2:4])
    goes, stands = float(lines[" goes.mp4 "]), float(lines[" stands.mp4 "])
    assert stands < 0.01
    # 2 px to the right in under half of the picture, and nothing downwards, which the mean takes in: 0.2 to 0.5 px.
    assert 0.15 < goes < 0.6


def test_a_missing_clip_and_a_missing_prompt_say_what_was_expected(videos, clip_folder, tmp_path, capsys):
    assert scores.main(["--videos", str(videos), "--clip", str(tmp_path)]) == 1
    assert "openai/clip-vit-base-patch32" in capsys.readouterr().err
    (tmp_path / "lonely.mp4").write_bytes((videos / "goes.mp4").read_bytes())
    assert "lonely.txt is not there" in scores.score_video(tmp_path / "lonely.mp4", lambda frames, prompt: 0.0).error
