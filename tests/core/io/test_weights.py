"""Weights files: what is read, what is refused and how the published checkpoint is taken apart."""

import contextlib
import io
import json
import os
import pickle
import stat
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from fantasyid_core.errors import WeightsError, WeightsMissingError, cause
from fantasyid_core.fusion import checkpoint
from fantasyid_core.io import weights
from fantasyid_core.io.layout import save_tensors


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


def assert_same(found, expected):
    assert sorted(found) == sorted(expected)
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in expected.items()
    )


def write_shards(folder: Path, tensors, base="diffusion_pytorch_model"):
    weight_map = {}
    for i, (name, tensor) in enumerate(tensors.items()):
        shard = f"{base}-{i + 1:05}-of-{len(tensors):05}.safetensors"
        save_file({name: tensor}, folder / shard)
        weight_map[name] = shard
    (folder / f"{base}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.safetensors", "model.safetensors", "tower.safetensors"])
def test_reads_a_folder_with_one_safetensors_file(tmp_path, tensors, name):
    save_file(tensors, tmp_path / name)
    (tmp_path / "config.json").write_text("{}")
    assert_same(weights.read(tmp_path), tensors)
    assert_same(weights.read(tmp_path / name), tensors)


@pytest.mark.parametrize("base", ["diffusion_pytorch_model", "model"])
def test_reads_shards(tmp_path, tensors, base):
    write_shards(tmp_path, tensors, base)
    assert_same(weights.read(tmp_path), tensors)


@pytest.mark.parametrize("zipped", [True, False])
def test_reads_pytorch_files_and_flattens_them(tmp_path, tensors, zipped):
    content = {"E": {"layer": tensors}, "epoch": 3, "c": torch.zeros(1)}
    torch.save(content, tmp_path / "deca_model.tar", _use_new_zipfile_serialization=zipped)
    expected = {f"E.layer.{name}": tensor for name, tensor in tensors.items()} | {"c": torch.zeros(1)}
    assert_same(weights.read(tmp_path / "deca_model.tar"), expected)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_tensors_that_nobody_uses_stay_on_the_disk(tmp_path, suffix):
    path = tmp_path / f"big{suffix}"
    big = {"used": torch.ones(1000), "dead": torch.zeros(64 << 20, dtype=torch.uint8)}
    save_file(big, path) if suffix == ".safetensors" else torch.save(big, path)
    del big
    before = resident_bytes()
    found = weights.read(path)
    assert found["used"].sum() == 1000
    assert resident_bytes() - before < 16 << 20
    assert found["dead"].sum() == 0  # now it is read
    assert resident_bytes() - before > 48 << 20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_missing_weights_name_the_path_and_what_is_there_instead(tmp_path):
    with pytest.raises(WeightsMissingError, match="nowhere"):
        weights.read(tmp_path / "nowhere")
    with pytest.raises(WeightsMissingError, match=r"x\.safetensors is not there"):
        weights.read(tmp_path / "x.safetensors")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(WeightsMissingError, match=r"expected diffusion_pytorch_model.safetensors.*notes\.txt"):
        weights.read(tmp_path)


def test_a_missing_shard_is_named(tmp_path, tensors):
    write_shards(tmp_path, tensors)
    (tmp_path / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsMissingError, match="00002-of-00002"):
        weights.read(tmp_path)


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..\\b.safetensors"])
def test_an_index_cannot_lead_out_of_its_folder(tmp_path, tensors, shard):
    inside = tmp_path / "inside"
    inside.mkdir()
    save_file(tensors, tmp_path / "secret.safetensors")
    (inside / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a.weight": shard}}))
    with pytest.raises(WeightsError, match="not a file name of its own folder"):
        weights.read(inside)


def test_an_index_that_lists_more_than_its_shards_hold_is_refused(tmp_path, tensors):
    write_shards(tmp_path, tensors)
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["ghost"] = content["weight_map"]["b"]
    index.write_text(json.dumps(content))
    with pytest.raises(WeightsError, match="ghost"):
        weights.read(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<!DOCTYPE html><html>Please log in</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer"),
        (b"", "truncated or not a weights file"),
        (b"\xff" * 64, "truncated or not a weights file"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_what_is_no_weights_file_is_refused_with_its_reason(tmp_path, content, reason, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"{reason}|no weights file"):
        weights.read(path)


def zipped(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return content.getvalue()


FOREIGN = {
    "GGUF": (b"GGUF\3\0\0\0" + (123).to_bytes(8, "little") + bytes(64), "is a GGUF file.*use the same model as"),
    "GGML": (b"ggml" + bytes(64), "is a GGML file.*Download"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "is an HDF5 file.*Download"),
    "NumPy": (b"\x93NUMPY\1\0" + bytes(64), "is a NumPy array.*Download"),
    "NumPy's archive": (zipped("a.npy", "b.npy"), "is an archive of NumPy arrays.*Download"),
    "zip": (zipped("model/model.safetensors"), "is a zip file.*unpack it"),
    "TorchScript": (zipped("x/data.pkl", "x/constants.pkl", "x/code/x.py"), "is a TorchScript program.*Download"),
    "gzip": (b"\x1f\x8b\x08" + bytes(64), "is a gzip file.*unpack it"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(64), "is a 7z file.*unpack it"),
    "tar": (bytes(257) + b"ustar" + bytes(300), "is a tar file.*unpack it"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(64), "is a picture.*Download"),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".gguf", ".tar"])
@pytest.mark.parametrize("name", FOREIGN)
def test_formats_of_others_are_told_by_their_content_with_what_to_do(tmp_path, name, suffix):
    content, words = FOREIGN[name]
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=words):
        weights.read(path)


def test_a_zip_of_a_version_that_python_does_not_know_is_left_to_pytorch(tmp_path, tensors):
    torch.save(tensors, tmp_path / "x.bin")
    content = bytearray((tmp_path / "x.bin").read_bytes())
    content[content.rindex(b"PK\x01\x02") + 6] = 255  # the version that is needed to take an entry out
    (tmp_path / "x.bin").write_bytes(content)
    assert_same(weights.read(tmp_path / "x.bin"), tensors)


def test_a_file_s_content_tells_how_it_is_read_not_its_name(tmp_path, tensors):
    for name in ("model.bin", "MODEL.SAFETENSORS"):
        save_file(tensors, tmp_path / name)
        assert_same(weights.read(tmp_path / name), tensors)
    torch.save(tensors, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=r"is a PyTorch file.*rename it"):
        weights.read(tmp_path / "x.safetensors")


@pytest.mark.parametrize("length", [0x8B1F, 0x685A42])
def test_a_header_s_length_is_not_taken_for_a_magic_number(tmp_path, length):
    """Safetensors files begin with it: 0x8B1F is how gzip begins, 0x685A42 bzip2."""
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(length)
    (tmp_path / "x.safetensors").write_bytes(length.to_bytes(8, "little") + header + bytes(4))
    assert weights.read(tmp_path / "x.safetensors")["a"].tolist() == [0]


def test_pytorch_s_advice_to_load_unsafely_is_never_passed_on(tmp_path):
    """Files for which PyTorch's own error says to set `weights_only=False`."""
    torch.save({"a": Path("x")}, tmp_path / "class.pt")
    (tmp_path / "damaged.pt").write_bytes(b"\x80\x02c__builtin__\neval\nq\0.")
    for name in ("class.pt", "damaged.pt"):
        with pytest.raises(pickle.UnpicklingError, match="weights_only"):
            torch.load(tmp_path / name, weights_only=True)
        with pytest.raises(WeightsError, match=r"Nothing of it was executed\. Download the") as caught:
            weights.read(tmp_path / name)
        assert "weights_only" not in str(caught.value)
    assert cause(RuntimeError("Re-running with `weights_only=False` will likely succeed.")) == "RuntimeError"
    assert cause(RuntimeError("first line\nsecond")) == "first line"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_configurations_may_begin_with_a_byte_order_mark(tmp_path, encoding):
    (tmp_path / "config.json").write_text('{"name": "Zoë"}', encoding)
    assert weights.read_config(tmp_path) == {"name": "Zoë"}


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_configurations_in_other_encodings_are_refused_with_a_cure(tmp_path, encoding):
    (tmp_path / "config.json").write_text('{"name": "Zoë"}', encoding)
    with pytest.raises(WeightsError, match="save it with the encoding UTF-8"):
        weights.read_config(tmp_path)


def test_hidden_names_are_no_weights_and_case_does_not_matter(tmp_path, tensors):
    save_file(tensors, tmp_path / "One.SafeTensors")
    (tmp_path / "._One.SafeTensors").write_bytes(b"\0\5\x16\7")
    (tmp_path / "._model.safetensors").write_bytes(b"\0\5\x16\7")
    assert weights.find(tmp_path) == tmp_path / "One.SafeTensors"


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_truncated_files_are_refused(tmp_path, tensors, suffix):
    path = tmp_path / f"x{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(WeightsError, match="truncated"):
        weights.read(path)


def test_a_header_that_lies_about_a_shape_is_refused(tmp_path, tensors):
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    path.write_bytes(path.read_bytes().replace(b"[2,3]", b"[9,9]"))
    with pytest.raises(WeightsError, match="cannot be read"):
        weights.read(path)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    damage=st.binary(min_size=1, max_size=24), place=st.floats(0, 1), suffix=st.sampled_from([".safetensors", ".pt"])
)
def test_damaged_files_give_tensors_or_a_weights_error(tmp_path, damage, place, suffix):
    path = tmp_path / f"x{suffix}"
    content = {"a": torch.arange(8.0)}
    if suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=False)
    data = bytearray(path.read_bytes())
    at = int(place * (len(data) - 1))
    data[at : at + len(damage)] = damage
    path.write_bytes(bytes(data))
    with contextlib.suppress(WeightsError):
        assert all(isinstance(tensor, torch.Tensor) for tensor in weights.read(path).values())


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    with (tmp_path / "x.pt").open("wb") as file:
        pickle.dump({"a": Hostile()}, file)
    torch.save({"a": Hostile()}, tmp_path / "y.pt")
    for name in ("x.pt", "y.pt"):
        with pytest.raises(WeightsError, match="could run code"):
            weights.read(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_config_is_read_or_its_absence_said(tmp_path):
    with pytest.raises(WeightsMissingError, match=r"config\.json is not there"):
        weights.read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"num_layers": 2}')
    assert weights.read_config(tmp_path) == {"num_layers": 2}
    (tmp_path / "config.json").write_text('{"num_layers": ')
    with pytest.raises(WeightsError, match="not valid JSON"):
        weights.read_config(tmp_path)


def test_loading_takes_the_tensors_themselves_and_their_dtype():
    with torch.device("meta"):
        module = nn.Linear(3, 2)
    given_tensors = {"weight": torch.randn(2, 3, dtype=torch.float16), "bias": torch.randn(2)}
    weights.load_into(module, given_tensors)
    assert module.weight.data_ptr() == given_tensors["weight"].data_ptr()
    assert (module.weight.dtype, module.bias.dtype) == (torch.float16, torch.float32)


def test_loading_reports_missing_left_over_and_mismatched_tensors():
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    found = {"0.weight": torch.zeros(5, 3), "0.bias": torch.zeros(2), "1.bias": torch.zeros(2), "9.x": torch.zeros(1)}
    with pytest.raises(WeightsError) as error:
        weights.load_into(module, found, what="test tower")
    for part in ("test tower", "1 missing (1.weight)", "1 left over (9.x)", "0.weight expected (2, 3) found (5, 3)"):
        assert part in str(error.value)
    found["0.weight"] = torch.ones(2, 3)
    weights.load_into(module, found, ignore=("1.weight", "9."))
    assert module[0].weight.sum() == 6


def published(parity_dir: Path) -> dict[str, torch.Tensor]:
    manifest = json.loads((parity_dir / "state_dict_manifest_2layers.json").read_text())
    return {name: torch.empty(shape, device="meta") for name, shape in manifest.items()}


def test_the_published_checkpoint_comes_apart_without_its_dead_tensors(parity_dir):
    state = published(parity_dir)
    parts = checkpoint.split_published(state)
    assert parts.has_identity
    named = (
        {f"{p}.{n}" for p in checkpoint.IDENTITY_PARTS for n in getattr(parts, p)} | set(parts.dit) | set(parts.dead)
    )
    assert named == set(state)
    assert "transformer_blocks.1.ff.net.2.bias" in parts.dit
    layer = {"to_q.weight", "to_kv.weight", "to_out.weight", "norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"}
    assert set(parts.layer_attention) == {f"{i}.{name}" for i in (0, 1) for name in layer}
    live = {name.split(".")[0] for name in parts.face_abstractor}
    assert live == {"proj_out", "mapping_4", "layers"}
    others = {n for n in parts.face_abstractor if n.startswith("layers.") and not n.startswith("layers.9.")}
    assert others == {"layers.8.0.pos_emb"}
    count = sum(tensor.numel() for tensor in parts.face_abstractor.values())
    assert count / 1e6 == pytest.approx(17.7, abs=0.1)  # of 144.2 million
    assert (count + sum(tensor.numel() for tensor in parts.dead.values())) / 1e6 == pytest.approx(144.2, abs=0.1)
    assert "left unloaded" in parts.report
    assert str(len(parts.dead)) in parts.report


@pytest.mark.parametrize("wrapper", checkpoint.WRAPPERS)
def test_a_checkpoint_saved_by_the_host_or_a_trainer_splits_the_same(parity_dir, wrapper):
    state = published(parity_dir)
    wrapped = checkpoint.split_published({wrapper + name: tensor for name, tensor in state.items()})
    assert wrapped == checkpoint.split_published(state)


def test_a_plain_cogvideox_has_no_identity_and_a_half_one_is_refused(parity_dir):
    state = {n: t for n, t in published(parity_dir).items() if not n.startswith(checkpoint.IDENTITY_PARTS)}
    assert not checkpoint.split_published(state).has_identity
    state["face_abstractor.proj_out"] = torch.empty(1, device="meta")
    with pytest.raises(WeightsError, match="no tensor of vertex_spiral_net, vertex_reducer, layer_attention"):
        checkpoint.split_published(state)


def test_a_single_file_may_carry_its_configuration(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "with.safetensors", metadata={"config": '{"depth": 3}'})
    save_file({"x": torch.zeros(1)}, tmp_path / "without.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "wrong.safetensors", metadata={"config": "[1, 2"})
    assert weights.embedded_config(tmp_path / "with.safetensors") == {"depth": 3}
    assert weights.embedded_config(tmp_path / "without.safetensors") is None
    with pytest.raises(WeightsError, match="no JSON object"):
        weights.embedded_config(tmp_path / "wrong.safetensors")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_what_is_saved_may_be_read_by_whom_the_system_lets_read(tmp_path, tensors, mask, mode):
    before = os.umask(mask)
    try:
        save_tensors(tensors, tmp_path / "new" / "x.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new" / "x.safetensors").stat().st_mode) == mode
    assert_same(weights.read(tmp_path / "new" / "x.safetensors"), tensors)
