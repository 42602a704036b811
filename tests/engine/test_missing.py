import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.engine.missing import leave_out


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.sets(st.integers(0, 7)), st.integers(0, 1000))
def test_what_remains_keeps_its_proportions_and_the_tokens_whole_weight(tokens, k, lost, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(8, generator=generator)[:k] for _ in range(tokens)]).to(torch.int32)
    weights = torch.rand((tokens, k), generator=generator) + 0.01
    left, shares, count = leave_out(ids, weights, sorted(lost))
    assert count == sum(expert in lost for expert in ids.flatten().tolist())
    for before, after, weight, share in zip(ids.tolist(), left.tolist(), weights, shares, strict=True):
        assert after == [-1 if expert in lost else expert for expert in before]
        kept = torch.tensor([expert not in lost for expert in before])
        assert not share[~kept].any()
        if kept.any():
            torch.testing.assert_close(share.sum(), weight.sum())
            torch.testing.assert_close(share[kept] / share.sum(), weight[kept] / weight[kept].sum())


def test_nothing_lost_changes_nothing():
    ids, weights = torch.tensor([[3, 1]]), torch.tensor([[0.7, 0.2]])
    left, shares, count = leave_out(ids, weights, [5])
    assert (left.tolist(), count) == ([[3, 1]], 0)
    torch.testing.assert_close(shares, weights)
