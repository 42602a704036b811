"""What a rank on a CUDA device does, as far as it is arithmetic: slots, routing, seams. SGLang's own parts take it."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from worker.engine.checkpoint import FP8, Checkpoint, ExpertShape
from worker.engine.cuda.memory import Arrays
from worker.engine.cuda.routing import StepWords
from worker.engine.errors import CheckpointError
from worker.engine.missing import leave_out
from worker.engine.slots import SlotLayout

ROOT = Path(__file__).parents[2]


def layout(dtype, *, layers=3, slots=5, hidden=256, intermediate=128):
    return SlotLayout(layers, slots, ExpertShape(hidden=hidden, intermediate=intermediate, dtype=dtype))


@settings(deadline=None)
@given(st.sampled_from(["bfloat16", FP8]), st.integers(1, 4), st.integers(1, 9), st.integers(1, 4), st.integers(1, 3))
def test_arrays_lie_apart_aligned_and_inside(dtype, layers, slots, wide, deep):
    chosen = layout(dtype, layers=layers, slots=slots, hidden=128 * wide, intermediate=128 * deep)
    arrays = Arrays.of(chosen)
    ranges = [arrays.array(layer, index) for layer in range(layers) for index in range(4)]
    assert all(place.start % 256 == 0 for place in ranges)
    filled = [place for place in ranges if place.stop > place.start]
    assert all(before.stop <= after.start for before, after in itertools.pairwise(filled))
    assert filled[-1].stop <= arrays.nbytes
    assert sum(arrays.sizes) == chosen.expert.nbytes


@pytest.mark.parametrize("dtype", ["bfloat16", FP8])
def test_what_is_put_into_a_slot_is_there_as_sglang_reads_it_and_comes_out_again(dtype):
    chosen = layout(dtype)
    arrays = Arrays.of(chosen)
    device = np.zeros(arrays.nbytes, np.uint8)
    random = np.random.default_rng(1)
    experts = {}
    for layer in range(chosen.layers):
        for slot in range(chosen.slots):
            experts[layer, slot] = random.integers(0, 256, chosen.expert.nbytes, np.uint8)
            for offset, part in arrays.parts(layer, slot):
                size = part.stop - part.start
                device[offset : offset + size] = experts[layer, slot][part]
    for (layer, slot), expert in experts.items():
        read = np.concatenate([device[at : at + part.stop - part.start] for at, part in arrays.parts(layer, slot)])
        assert np.array_equal(read, expert)
        w13 = device[arrays.array(layer, 0)].reshape(chosen.slots, -1)[slot]  # SGLang's parameter [slots, …]
        assert np.array_equal(w13, expert[: chosen.expert.w13_bytes - chosen.expert.w13_scale_bytes])


def save_fp8(folder, *, scale=torch.float32, with_scales=True):
    torch.manual_seed(3)
    tensors = {}
    for expert in range(2):
        for part, (rows, columns) in {"gate": (128, 256), "up": (128, 256), "down": (256, 128)}.items():
            name = f"model.layers.1.mlp.experts.{expert}.{part}_proj.weight"
            tensors[name] = torch.randn(rows, columns).to(torch.float8_e4m3fn)
            if with_scales:
                tensors[f"{name}_scale_inv"] = torch.rand(rows // 128, columns // 128).to(scale)
    save_file(tensors, folder / "model.safetensors")
    return tensors


def read_fp8(folder):
    checkpoint = Checkpoint(folder)
    shape = checkpoint.shape(FP8)
    w13, w2 = np.zeros(shape.w13_bytes, np.uint8), np.zeros(shape.w2_bytes, np.uint8)
    checkpoint.read(1, 1, w13, w2, dtype=FP8)
    return w13, w2


def test_an_fp8_expert_is_read_with_its_scales(tmp_path):
    tensors = save_fp8(tmp_path)
    w13, w2 = (torch.from_numpy(block) for block in read_fp8(tmp_path))
    prefix = "model.layers.1.mlp.experts.1"
    gate, up, down = (tensors[f"{prefix}.{part}_proj.weight"] for part in ("gate", "up", "down"))
    scales = [tensors[f"{prefix}.{part}_proj.weight_scale_inv"] for part in ("gate", "up", "down")]
    assert torch.equal(w13[: 2 * 128 * 256], torch.cat([gate, up]).view(torch.uint8).flatten())
    assert torch.equal(w13[2 * 128 * 256 :].view(torch.float32), torch.cat(scales[:2]).flatten())
    assert torch.equal(w2[: 256 * 128], down.view(torch.uint8).flatten())
    assert torch.equal(w2[256 * 128 :].view(torch.float32), scales[2].flatten())


@pytest.mark.parametrize(
    ("how", "named"), [({"with_scales": False}, "weight_scale_inv"), ({"scale": torch.bfloat16}, "F32")]
)
def test_fp8_experts_without_usable_scales_are_refused(tmp_path, how, named):
    save_fp8(tmp_path, **how)
    with pytest.raises(CheckpointError, match=named):
        read_fp8(tmp_path)


def words(*, best_effort=True, layers=2, experts=6):
    return StepWords(layers=layers, experts=experts, best_effort=best_effort, device=torch.device("cpu"))


def routing(tokens=5, k=3, experts=6):
    torch.manual_seed(tokens)
    ids = torch.rand(tokens, experts).argsort(dim=1)[:, :k].to(torch.int32)
    ids[0, 1] = -1
    return ids, torch.rand(tokens, k)


def test_padded_rows_go_nowhere():
    chosen, (ids, weights) = words(best_effort=False), routing()
    assert torch.equal(chosen.apply(0, ids, weights)[0], ids)
    chosen.write((), rows=3)
    masked, same = chosen.apply(0, ids, weights)
    assert torch.equal(masked[:3], ids[:3])
    assert (masked[3:] == -1).all()
    assert same is weights
    chosen.write((), rows=None)
    assert torch.equal(chosen.apply(0, ids, weights)[0], ids)


def test_experts_that_are_gone_are_left_out_as_on_the_cpu_in_their_layer_only():
    chosen, (ids, weights) = words(), routing()
    chosen.write(((1, 2), (1, 4)), rows=None)
    assert torch.equal(chosen.apply(0, ids, weights)[0], ids)
    assert chosen.left_out(0) == 0
    found = chosen.apply(1, ids, weights)
    expected_ids, expected_weights, count = leave_out(ids, weights, [2, 4])
    assert torch.equal(found[0], expected_ids)
    torch.testing.assert_close(found[1], expected_weights)
    assert chosen.left_out(1) == count > 0
    chosen.write((), rows=None)
    assert torch.equal(chosen.apply(1, ids, weights)[0], ids)


def test_sglang_takes_what_the_dispatchers_give():
    script = Path(__file__).parent / "cuda_on_sglang.py"
    variables = os.environ | {"EEP_CPU_SHIMS": "1", "SGLANG_USE_CPU_ENGINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=240, check=False, env=variables
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert done.stdout.strip().endswith("held")
