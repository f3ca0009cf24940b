"""InsightFace behind the common interface: a tiny network in the real files' layout through the real package."""

import logging
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from fantasyid_core.detection import insightface
from fantasyid_core.errors import PackageMissingError, WeightsError, WeightsMissingError

# Px from a cell's corner, in strides: box (left, top, right, bottom) and landmarks, as SCRFD gives them.
BOX = (2.0, 2.5, 2.0, 2.5)
LANDMARKS = (-1.0, -1.0, 1.0, -1.0, 0.0, 0.2, -0.8, 1.2, 0.8, 1.2)


def write_detector(path: Path, landmarks: bool = True) -> Path:
    """An SCRFD of the real shape, of which a cell of stride 8 fires where the picture is white, the others never."""
    onnx = pytest.importorskip("onnx")
    numpy_helper, helper = onnx.numpy_helper, onnx.helper
    nodes, constants, outputs = [], [], {"score": [], "box": [], "points": []}

    def constant(name: str, value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(value, name))
        return name

    heads = {"score": 1, "box": 4} | ({"points": 10} if landmarks else {})
    for stride in (8, 16, 32):
        pooled = f"pooled{stride}"
        pool = helper.make_node("AveragePool", ["input"], [pooled], kernel_shape=[stride] * 2, strides=[stride] * 2)
        nodes.append(pool)
        for head, width in heads.items():
            weight = np.zeros((2 * width, 3, 1, 1), np.float32)
            if head == "score":  # −1 … 1 in, the first anchor alone fires
                weight[0] = 20
                bias = np.array([-55.0 if stride == 8 else -99, -99], np.float32)
            else:
                bias = np.tile(np.array(BOX if head == "box" else LANDMARKS, np.float32), 2)
            name = f"{head}{stride}"
            inputs = [pooled, constant(f"{name}w", weight), constant(f"{name}b", bias)]
            nodes.append(helper.make_node("Conv", inputs, [f"{name}c"]))
            last = f"{name}c"
            if head == "score":
                nodes.append(helper.make_node("Sigmoid", [last], [f"{name}s"]))
                last = f"{name}s"
            nodes.append(helper.make_node("Transpose", [last], [f"{name}t"], perm=[0, 2, 3, 1]))
            shape = constant(f"{name}r", np.array([-1, width], np.int64))
            nodes.append(helper.make_node("Reshape", [f"{name}t", shape], [name]))
            outputs[head].append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", width]))
    picture = helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, [1, 3, "height", "width"])
    graph = helper.make_graph(nodes, "scrfd", [picture], list(chain(*outputs.values())), constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`models/insightface` with antelopev2 as its zip unpacks, one folder too deep, and an empty buffalo_l."""
    pytest.importorskip("onnxruntime")
    root = tmp_path_factory.mktemp("insightface")
    write_detector(root / "models" / "antelopev2" / "antelopev2" / "scrfd_10g_bnkps.onnx")
    (root / "models" / "buffalo_l").mkdir()
    return root


def test_packages_are_found_however_they_were_unpacked(models: Path, tmp_path: Path):
    assert insightface.packages(models) == ["antelopev2"]
    flat = write_detector(tmp_path / "buffalo_l" / "det_10g.onnx")
    assert insightface.packages(models, tmp_path) == ["antelopev2", "buffalo_l"]
    assert insightface.find_detector("buffalo_l", models, tmp_path) == flat


@pytest.mark.parametrize("name", ["buffalo_l", "../antelopev2", "", "/etc"])
def test_what_is_missing_is_said_with_its_place(models: Path, name: str):
    with pytest.raises(WeightsMissingError, match="expected det_") as error:
        insightface.find_detector(name, models)
    assert str(models / "models") in str(error.value)
    assert "YuNet needs no file" in str(error.value)


def test_boxes_and_landmarks_are_where_the_network_puts_them(models: Path):
    detector = insightface.load(insightface.find_detector("antelopev2", models))
    pictures = torch.zeros(3, 100, 150, 3)
    pictures[0, 40:48, 64:72] = 1  # the cell in row 5, column 8
    pictures[2, 48:56, 16:24] = 1
    first, nothing, other = detector(pictures, 0.5)
    assert len(nothing) == 0
    corner = torch.tensor([64.0, 40])
    torch.testing.assert_close(
        first.boxes[0], torch.cat([corner, corner]) + 8 * torch.tensor(BOX) * torch.tensor([-1, -1, 1, 1])
    )
    torch.testing.assert_close(first.landmarks[0], corner + 8 * torch.tensor(LANDMARKS).reshape(5, 2))
    assert len(first) == 1
    assert first.scores[0] > 0.9
    torch.testing.assert_close(other.boxes[0, :2] - first.boxes[0, :2], torch.tensor([16.0 - 64, 8]))


def test_on_the_cpu_of_a_cuda_machine_one_line_says_so(
    models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    insightface.load.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with caplog.at_level(logging.INFO, "fantasyid_core.detection.insightface"):
        insightface.load(insightface.find_detector("antelopev2", models))
    (line,) = (
        record.getMessage() for record in caplog.records if record.name == "fantasyid_core.detection.insightface"
    )
    assert "onnxruntime-gpu" in line


@pytest.mark.parametrize("damage", ["truncated", "no landmarks"])
def test_a_wrong_file_says_what_to_unpack(tmp_path: Path, damage: str):
    path = write_detector(tmp_path / "models" / "buffalo_l" / "det_10g.onnx", landmarks=damage != "no landmarks")
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(WeightsError, match=r"det_10g\.onnx"):
        insightface.load(path)


def test_without_the_package_the_error_says_what_to_install(models: Path, monkeypatch: pytest.MonkeyPatch):
    insightface.load.cache_clear()
    for name in ("insightface", "insightface.model_zoo", "insightface.model_zoo.model_zoo"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PackageMissingError, match="pip install insightface onnxruntime"):
        insightface.load(insightface.find_detector("antelopev2", models))
