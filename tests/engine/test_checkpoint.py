import json
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from worker.engine.checkpoint import Checkpoint, convert
from worker.engine.errors import CheckpointError


def write(folder, *, dtype=torch.float32, layers=(1, 3), experts=3, hidden=8, intermediate=32, skip=()):
    torch.manual_seed(7)
    tensors = {}
    for layer in layers:
        for expert in range(experts):
            for part, shape in (
                ("gate", (intermediate, hidden)),
                ("up", (intermediate, hidden)),
                ("down", (hidden, intermediate)),
            ):
                name = f"model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight"
                if name not in skip:
                    tensors[name] = torch.randn(shape).to(dtype)
    folder.mkdir(exist_ok=True)
    save_file({**tensors, "model.layers.0.mlp.gate_proj.weight": torch.zeros(2, 2)}, folder / "model.safetensors")
    return tensors


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("held", ["float32", "bfloat16"])
def test_an_expert_is_read_as_torch_would_convert_it(tmp_path, stored, held):
    tensors = write(tmp_path, dtype=stored)
    checkpoint = Checkpoint(tmp_path)
    shape = checkpoint.shape(held)
    w13, w2 = np.zeros(shape.w13_bytes, np.uint8), np.zeros(shape.w2_bytes, np.uint8)
    checkpoint.read(3, 2, w13, w2, dtype=held)

    prefix, kind = "model.layers.3.mlp.experts.2", getattr(torch, held)
    rows = torch.cat([tensors[f"{prefix}.gate_proj.weight"], tensors[f"{prefix}.up_proj.weight"]]).to(kind)
    assert torch.equal(torch.from_numpy(w13).view(kind).view(rows.shape), rows)
    down = tensors[f"{prefix}.down_proj.weight"].to(kind)
    assert torch.equal(torch.from_numpy(w2).view(kind).view(down.shape), down)


def test_an_expert_is_padded_with_zeros_as_sglang_pads_it(tmp_path):
    tensors = write(tmp_path, intermediate=48)
    checkpoint = Checkpoint(tmp_path)
    shape = checkpoint.shape("float32")
    assert shape.intermediate == 64
    w13, w2 = np.full(shape.w13_bytes, 7, np.uint8), np.full(shape.w2_bytes, 7, np.uint8)
    checkpoint.read(1, 0, w13, w2, dtype="float32")
    gate, up = torch.from_numpy(w13.view(np.float32)).view(2, 64, 8)
    down = torch.from_numpy(w2.view(np.float32)).view(8, 64)
    prefix = "model.layers.1.mlp.experts.0"
    for padded, part in ((gate, "gate"), (up, "up"), (down.t(), "down")):
        stored = tensors[f"{prefix}.{part}_proj.weight"]
        assert torch.equal(padded[:48], stored.t() if part == "down" else stored)
        assert not padded[48:].any()


def test_rounding_to_bfloat16_is_to_nearest_even_over_the_whole_range():
    bits = np.random.default_rng(0).integers(0, 2**32, 20000, dtype=np.uint32)
    numbers = bits.view(np.float32)
    numbers = numbers[np.isfinite(numbers)]
    out = np.zeros(numbers.size * 2, np.uint8)
    convert(numbers.view(np.uint8), "F32", out, "bfloat16")
    expected = torch.from_numpy(numbers).to(torch.bfloat16)
    assert torch.equal(torch.from_numpy(out).view(torch.int16), expected.view(torch.int16))


def test_layers_without_experts_are_left_out(tmp_path):
    write(tmp_path, layers=(2, 5, 9))
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.layers == [2, 5, 9]
    assert checkpoint.n_experts == 3


def test_identity_follows_the_files(tmp_path):
    write(tmp_path / "a")
    before = Checkpoint(tmp_path / "a").identity
    assert Checkpoint(tmp_path / "a").identity == before
    write(tmp_path / "a", experts=4)
    assert Checkpoint(tmp_path / "a").identity != before


def test_an_expert_without_its_three_matrices_is_named(tmp_path):
    write(tmp_path, skip=("model.layers.3.mlp.experts.1.up_proj.weight",))
    with pytest.raises(CheckpointError, match=r"layer 3 expert 1 has only \['down', 'gate'\]"):
        Checkpoint(tmp_path)


def test_a_folder_without_weights_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors"):
        Checkpoint(tmp_path)


def test_fused_experts_are_refused_with_a_remedy(tmp_path):
    save_file({"model.layers.0.mlp.experts.gate_up_proj": torch.zeros(2, 4, 8)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="one by one, not fused"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("cut", [4, 20, -1])
def test_a_file_cut_short_is_an_error_not_a_crash(tmp_path, cut):
    write(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError):
        _read_all(Checkpoint(tmp_path))


def test_a_file_that_went_away_is_an_error(tmp_path):
    write(tmp_path)
    checkpoint = Checkpoint(tmp_path)
    _read_all(checkpoint)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="put the file back"):
        _read_all(checkpoint)


def test_a_header_that_lies_about_offsets_is_an_error(tmp_path):
    write(tmp_path)
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    for entry in header.values():
        entry["data_offsets"] = [offset + (1 << 20) for offset in entry["data_offsets"]]
    changed = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(changed)) + changed + data[8 + length :])
    with pytest.raises(CheckpointError, match="but a tensor ends at"):
        _read_all(Checkpoint(tmp_path))


def _read_all(checkpoint):
    shape = checkpoint.shape("float32")
    w13, w2 = np.zeros(shape.w13_bytes, np.uint8), np.zeros(shape.w2_bytes, np.uint8)
    for layer, expert in checkpoint.experts:
        checkpoint.read(layer, expert, w13, w2, dtype="float32")
