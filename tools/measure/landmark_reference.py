"""Points as MediaPipe's own graph reads them, for the tests: `python -m tools.measure.landmark_reference PYTHON`.

PYTHON is the interpreter of an environment of its own with mediapipe 0.10.21, which this one need not have. It gets the
faces of the labelled photos cut out and 192 px large, so that both networks see the same pixels.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from fantasyid_core.detection import dense_landmarks
from fantasyid_core.detection.faces import detect
from tools.measure.labelled_faces import LabelledPhoto, photos

FIXTURE = Path(__file__).parents[2] / "tests" / "fixtures" / "landmarks" / "mediapipe.safetensors"
_GRAPH = """
import sys
from pathlib import Path
import mediapipe
import numpy as np
from mediapipe.framework.formats import rect_pb2
from mediapipe.python import packet_creator, packet_getter
from mediapipe.python._framework_bindings import calculator_graph, resource_util

resource_util.set_resource_dir(str(Path(mediapipe.__file__).parents[1]))
GRAPH = '''
input_stream: "image"
input_stream: "roi"
input_side_packet: "attention"
output_stream: "landmarks"
node {
  calculator: "FaceLandmarkCpu"
  input_stream: "IMAGE:image"
  input_stream: "ROI:roi"
  input_side_packet: "WITH_ATTENTION:attention"
  output_stream: "LANDMARKS:landmarks"
}
'''
found = []
for crop in np.load(sys.argv[1]):
    graph, marks = calculator_graph.CalculatorGraph(graph_config=GRAPH), []
    graph.observe_output_stream("landmarks", lambda _, packet: marks.append(packet_getter.get_proto(packet)))
    graph.start_run({"attention": packet_creator.create_bool(True)})
    image = packet_creator.create_image_frame(data=np.ascontiguousarray(crop), image_format=mediapipe.ImageFormat.SRGB)
    whole = rect_pb2.NormalizedRect(x_center=0.5, y_center=0.5, width=1, height=1)
    graph.add_packet_to_input_stream("image", image.at(0))
    graph.add_packet_to_input_stream("roi", packet_creator.create_proto(whole).at(0))
    graph.close_all_packet_sources()
    graph.wait_until_done()
    found.append([(point.x, point.y, point.z) for point in marks[0].landmark])
np.save(sys.argv[2], np.array(found, np.float32) * 192)
"""


def labelled_squares(label: LabelledPhoto) -> Tensor:
    """(N, 2, 3) the squares around the people of a photo, as `dense_landmarks` looks at them the second time."""
    photo = label.read()
    boxes = [(face, face.box.tolist()) for face in detect(photo)]
    people = [
        face.landmarks for face, (x0, y0, x1, y1) in boxes if any(x0 < x < x1 and y0 < y < y1 for x, y in label.people)
    ]
    if not people:
        return torch.zeros(0, 2, 3)
    points, _ = dense_landmarks.look(photo, dense_landmarks.first_squares(torch.stack(people)))
    return dense_landmarks.squares(points)


def main() -> None:
    """Write the fixture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("python", type=Path)
    python: Path = parser.parse_args().python
    names, squares, crops = [], [], []
    for label in photos():
        if not label.people:
            continue
        for square in labelled_squares(label):
            names.append(label.name)
            squares.append(square)
            crops.append(dense_landmarks.cut(label.read(), square).mul(255).round().byte())
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder) / "crops.npy", Path(folder) / "points.npy"
        np.save(inputs, torch.stack(crops).movedim(1, -1).numpy())
        subprocess.run([python, "-c", _GRAPH, inputs, outputs], check=True)
        points = torch.from_numpy(np.load(outputs))
    FIXTURE.parent.mkdir(parents=True, exist_ok=True)
    save_file({"squares": torch.stack(squares), "points": points}, FIXTURE, {"photos": json.dumps(names)})


if __name__ == "__main__":
    main()
