"""Convert MediaPipe's face landmark network: `python -m tools.assets.landmark_network WHEEL`.

WHEEL is mediapipe 0.10.21 from PyPI (`pip download --no-deps mediapipe==0.10.21`), of which one file is read; `pip
install ai-edge-litert` in an environment of its own gives the schema that it is read with. The layers are found from
each output back to the input, and must fit `LandmarkNetwork` one by one; values stay the float16 that they are.
"""

from __future__ import annotations

import argparse
import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from fantasyid_core.detection.landmark_network import WEIGHTS, LandmarkNetwork

MEMBER = "mediapipe/modules/face_landmark/face_landmark_with_attention.tflite"
SHA256 = "e06a804e0144f9929eda782122916b35d60c697c3c9344013ca2bbe76a6ce2b4"
_LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "PRELU")


class TfLite:
    """The operations and tensors of a TensorFlow Lite file with one graph."""

    def __init__(self, content: bytes):
        from ai_edge_litert import schema_py_generated as schema

        self._model = schema.Model.GetRootAs(content, 0)
        self._graph = self._model.Subgraphs(0)
        names = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
        self._made_by = {}
        for i in range(self._graph.OperatorsLength()):
            operation = self._graph.Operators(i)
            code = self._model.OperatorCodes(operation.OpcodeIndex())
            name = code.CustomCode() or names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())].encode()
            for output in operation.OutputsAsNumpy():
                self._made_by[int(output)] = (name.decode(), operation)

    def output(self, name: str) -> int:
        """Number of the tensor with that name."""
        (found,) = (i for i in self._made_by if self._graph.Tensors(i).Name().decode() == name)
        return found

    def back(self, tensor: int) -> Iterator[tuple[str, list[int], bytes]]:
        """Operations from a tensor back to the input, as name, inputs and options; shortcuts are left aside."""
        while tensor in self._made_by:
            name, operation = self._made_by[tensor]
            inputs = [int(i) for i in operation.InputsAsNumpy()]
            options = bytes(operation.CustomOptionsAsNumpy()) if operation.CustomOptionsLength() else b""
            yield name, inputs, options
            tensor = inputs[0]
            if name == "ADD":
                (tensor,) = (i for i in inputs if self._made_by[i][0] == "CONV_2D")
            elif name == "TransformTensorBilinear":
                tensor = inputs[1]

    def values(self, tensor: int) -> np.ndarray:
        """A constant, whether or not the graph casts it."""
        while tensor in self._made_by:
            tensor = int(self._made_by[tensor][1].InputsAsNumpy()[0])
        held = self._graph.Tensors(tensor)
        kind = {0: np.float32, 1: np.float16}[held.Type()]
        content = self._model.Buffers(held.Buffer()).DataAsNumpy().tobytes()
        return np.frombuffer(content, kind).reshape(held.ShapeAsNumpy())


def layers(file: TfLite, output: str, until: str = "") -> list[Tensor]:
    """Weights between an operation named `until` (or the input) and an output, in the order of computation."""
    found = []
    for name, inputs, _ in file.back(file.output(output)):
        if name == until:
            break
        if name in _LAYERS:
            found.append([_torch(name, file.values(i)) for i in inputs[1:]])
    return [tensor for layer in reversed(found) for tensor in layer]


def _torch(layer: str, values: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(values.copy())
    if layer == "PRELU":
        return tensor.flatten()
    if values.ndim < 4:
        return tensor
    return tensor.permute((3, 0, 1, 2) if layer == "DEPTHWISE_CONV_2D" else (0, 3, 1, 2)).contiguous()


def region(file: TfLite, output: str) -> dict:
    """Which points a region refines and which lie level in it."""
    from flatbuffers import flexbuffers

    for name, _, options in file.back(file.output(output)):
        if name == "Landmarks2TransformMatrix":
            return flexbuffers.Loads(options)
    raise ValueError(f"{output} is not computed from a region.")


def convert(file: TfLite) -> dict[str, Tensor]:
    """The state dict of `LandmarkNetwork`."""
    network = LandmarkNetwork()
    held: dict[str, Tensor] = {}

    def take(prefixes: list[str], weights: list[Tensor]) -> None:
        names = [name for prefix in prefixes for name, _ in network.get_submodule(prefix).named_parameters(prefix)]
        for name, weight in zip(names, weights, strict=True):
            if network.get_parameter(name).shape != weight.shape:
                raise ValueError(
                    f"{name} should be {tuple(network.get_parameter(name).shape)}, is {tuple(weight.shape)}."
                )
            held[name] = weight

    take(["stem", "early", "late", "flag"], layers(file, "conv_faceflag"))
    take(["mesh"], layers(file, "output_mesh")[-2:])
    # The file's left is the picture's, ours is the person's.
    for name, theirs in (("lips", "lips"), ("right_eye", "left"), ("left_eye", "right")):
        outputs = ["conv_lips"] if name == "lips" else [f"conv_{theirs}_eye", f"conv_{theirs}_iris"]
        for i, output in enumerate(outputs):
            take([f"{name}.trunk", f"{name}.heads.{i}"], layers(file, output, "TransformTensorBilinear"))
        options = region(file, outputs[0])
        held[f"{name}.points"] = torch.tensor(options["subset_idxs"])
        held[f"{name}.axis"] = torch.tensor([options["left_rotation_idx"], options["right_rotation_idx"]])
    network.load_state_dict(held)
    return held


def main() -> None:
    """Write the weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    arguments = parser.parse_args()
    content = zipfile.ZipFile(arguments.wheel).read(MEMBER)
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{MEMBER} in {arguments.wheel} is another file: SHA-256 {found}, expected {SHA256}.")
    held = convert(TfLite(content))
    source = {
        "source": f"mediapipe 0.10.21: {MEMBER}",
        "sha256": SHA256,
        "licence": "Apache-2.0, The MediaPipe Authors",
    }
    save_file(held, arguments.output, source)


if __name__ == "__main__":
    main()
