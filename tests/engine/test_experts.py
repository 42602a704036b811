import pytest
import torch

from worker.engine.cpu.experts import SlotExperts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pairs", [1, 2, 8, 9, 40, 300])
@pytest.mark.parametrize("slots", [1, 3, 17])
def test_outputs_are_those_of_each_rows_expert(pairs, slots, dtype):
    torch.manual_seed(pairs * slots)
    hidden, intermediate = 24, 10
    w13 = torch.randn(slots, 2 * intermediate, hidden).to(dtype)
    w2 = torch.randn(slots, hidden, intermediate).to(dtype)
    rows, weights = torch.randn(pairs, hidden).to(dtype), torch.rand(pairs, 1)
    chosen = torch.randint(0, slots, (pairs,), dtype=torch.int32)

    expected = []
    for row, slot, weight in zip(rows.double(), chosen.tolist(), weights.double(), strict=True):
        gate, up = (w13[slot].double() @ row).chunk(2)
        expected.append(weight * (w2[slot].double() @ (torch.nn.functional.silu(gate) * up)))
    found = SlotExperts(w13, w2)(rows, chosen, weights)

    assert found.dtype == dtype
    bound = {"rtol": 1e-4, "atol": 1e-3} if dtype == torch.float32 else {"rtol": 0.05, "atol": 1.0}
    torch.testing.assert_close(found.double(), torch.stack(expected), **bound)


def test_a_slot_filled_later_is_used_at_once():
    w13, w2 = torch.zeros(2, 8, 6), torch.zeros(2, 6, 4)
    experts = SlotExperts(w13, w2)
    rows, slots, weights = torch.ones(1, 6), torch.tensor([1], dtype=torch.int32), torch.ones(1, 1)
    assert experts(rows, slots, weights).abs().sum() == 0
    w13[1].fill_(1.0)
    w2[1].fill_(1.0)
    assert experts(rows, slots, weights).abs().sum() > 0
