"""Two folders with the same values, stored in 8 bits and in fp16: what the nodes make of them, side by side."""

import shutil
import sys
from pathlib import Path

import host

base, *folders = (Path(argument) for argument in sys.argv[1:4])
host.start(base)
for folder in folders:
    shutil.copytree(folder, base / "models" / "fantasyid" / folder.name)

import torch  # noqa: E402
from pack.fantasyid_core.detection.faces import DetectedFace  # noqa: E402
from pack.nodes.host.options import transformer_of  # noqa: E402
from pack.nodes.loading import FantasyIDLoadModel  # noqa: E402
from pack.nodes.reconstruction import FantasyIDReconstruct  # noqa: E402
from safetensors import safe_open  # noqa: E402
from torch import Tensor, nn  # noqa: E402

torch.set_grad_enabled(False)
NAMES = [folder.name for folder in folders]
seed = torch.Generator().manual_seed(0)
TEXT = torch.randn(1, 226, 32, generator=seed)
FACE = DetectedFace(torch.rand(200, 300, 3, generator=seed), *[torch.zeros(1)] * 2, 1.0, *[torch.zeros(1)] * 2)


def names_in(folder: Path) -> list[str]:
    found = []
    for path in (folder / "transformer").glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found += file.keys()
    return found


def unlike(a: nn.Module, b: nn.Module) -> list[str]:
    """Names of the tensors that are not the same to the bit, in the same type."""
    a, b = a.state_dict(), b.state_dict()
    same = [n for n in a if n in b and a[n].dtype == b[n].dtype and torch.equal(a[n].float(), b[n].float())]
    return sorted((a.keys() | b.keys()) - set(same))


def prediction(model) -> Tensor:
    transformer = transformer_of(model)
    height, width = transformer.config.sample_height, transformer.config.sample_width
    x = torch.randn(1, 32, 3, height, width, generator=torch.Generator().manual_seed(1))
    dtype = model.model.manual_cast_dtype or model.model.get_dtype()
    return transformer(x.to(dtype), torch.tensor([500.0]), TEXT.to(dtype))


found: dict = {"stored": {f.name: any(n.endswith(".row_scale") for n in names_in(f)) for f in folders}}
for dtype in ("default", "fp8_e4m3fn", "fp32"):
    loaded = [FantasyIDLoadModel.run(name, dtype).args for name in NAMES]
    models = [model for model, _, _ in loaded]
    found[f"model, {dtype}"] = {
        "tensors": unlike(*(transformer_of(model) for model in models)),
        "size": models[0].model_size() == models[1].model_size(),
        "prediction": torch.equal(*(prediction(model) for model in models)),
    }
found["encoder"] = unlike(*(encoder.loaded().model for _, _, encoder in loaded))
meshes = [FantasyIDReconstruct.run(FACE, name, "as released").args[0] for name in NAMES]
found["mesh"] = torch.equal(meshes[0].vertices, meshes[1].vertices)
host.report(**found)
