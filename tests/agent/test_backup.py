from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.agent.backup import host_share


@given(layers=st.integers(1, 5), experts=st.integers(1, 40), hosts=st.integers(2, 6), spare=st.integers(0, 3))
def test_from_two_copies_on_no_host_takes_the_only_one(layers, experts, hosts, spare):
    names = [f"h{index}" for index in range(hosts)]
    share = min(1.0, 2 / hosts + 0.01 + spare / 10)
    kept = {name: host_share(layers=layers, experts=experts, host=name, hosts=names, share=share) for name in names}
    for lost in names:
        left = {pair for name in names if name != lost for pair in kept[name]}
        assert len(left) == layers * experts


@given(hosts=st.integers(1, 6), share=st.floats(0, 1))
def test_shares_are_even(hosts, share):
    names = [f"h{index}" for index in range(hosts)]
    copies = Counter({(layer, expert): 0 for layer in range(3) for expert in range(20)})
    for name in names:
        kept = host_share(layers=3, experts=20, host=name, hosts=names, share=share)
        assert len(set(kept)) == len(kept) == math.ceil(60 * share - 1e-9)
        copies.update(kept)
    assert max(copies.values()) - min(copies.values()) <= 2


def test_a_host_that_is_not_listed_is_told_so():
    with pytest.raises(ValueError, match=r"backup_hosts = \['a'\]: this host is 'b'; add it"):
        host_share(layers=1, experts=1, host="b", hosts=["a"], share=1.0)
