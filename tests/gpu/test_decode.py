"""A captured MoE decode step end to end: router, our dispatch, grouped expert MLPs, our combine, several layers."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(60)]

RANKS, TOKENS, HIDDEN, INNER, EXPERTS, TOPK, LAYERS = 4, 8, 512, 256, 16, 4, 3


class Model:
    """Weights of every layer, and what one layer must do to its input, expert by expert."""

    def __init__(self):
        import torch

        make = torch.Generator(device="cuda").manual_seed(7)

        def weight(*shape):
            scale = shape[-2] ** -0.5
            return (torch.randn(shape, generator=make, device="cuda") * scale).to(torch.bfloat16)

        self.router = weight(LAYERS, HIDDEN, EXPERTS)
        self.up = weight(LAYERS, EXPERTS, HIDDEN, 2 * INNER)
        self.down = weight(LAYERS, EXPERTS, INNER, HIDDEN)

    def route(self, layer, x):
        import torch

        weights, ids = torch.softmax((x @ self.router[layer]).float(), dim=-1).topk(TOPK, dim=-1)
        return ids, (weights / weights.sum(dim=-1, keepdim=True)).contiguous()

    def experts(self, up, down, rows):
        import torch

        gate, value = (rows @ up).chunk(2, dim=-1)
        return (torch.nn.functional.silu(gate) * value) @ down

    def reference(self, layer, x):
        import torch

        ids, weights = self.route(layer, x)
        out = torch.zeros_like(x, dtype=torch.float32)
        for k in range(TOPK):
            for token in range(x.shape[0]):
                expert = int(ids[token, k])
                y = self.experts(self.up[layer, expert].float(), self.down[layer, expert].float(), x[token].float())
                out[token] += weights[token, k] * y
        return x.float() + out


class Decoder:
    """One rank's captured step: a sync and all layers; the input of each layer is kept to be checked against."""

    def __init__(self, world, model, rank):
        import torch

        self.world, self.model, self.rank = world, model, rank
        self.x = [torch.zeros((TOKENS, HIDDEN), dtype=torch.bfloat16, device="cuda") for _ in range(LAYERS + 1)]
        held = [world.sizes.expert_at(rank, slot) for slot in range(world.sizes.slots)]
        self.up, self.down = model.up[:, held].contiguous(), model.down[:, held].contiguous()
        torch.cuda.synchronize()
        with torch.cuda.stream(world.streams[rank]):  # cuBLAS sets itself up outside the capture
            self.layer(0, warm_up=True)
        torch.cuda.synchronize()
        self.graph, self.captures = world.capture(rank, self.step), 1

    def step(self):
        self.world.groups[self.rank].enqueue_sync(stream=self.world.streams[self.rank])
        for layer in range(LAYERS):
            self.layer(layer, warm_up=False)

    def layer(self, layer, *, warm_up):
        import torch

        group, stream, x = self.world.groups[self.rank], self.world.streams[self.rank], self.x[layer]
        ids, weights = self.model.route(layer, x)
        if warm_up:
            rows = torch.zeros(
                group.buffer_shape, dtype=torch.bfloat16, device="cuda"
            )  # the shape chooses cuBLAS's kernel
            self.model.experts(self.up[layer], self.down[layer], rows)
            return
        got = group.dispatch(layer, x, ids, weights, stream=stream)
        y = self.model.experts(self.up[layer], self.down[layer], got.rows)
        out = torch.empty_like(x)
        group.combine(y, out, weighted=False, stream=stream)
        self.x[layer + 1].copy_(x + out)


def replay(world, decoders, who, seed):
    import torch

    make = torch.Generator(device="cuda").manual_seed(seed)
    for rank in who:
        decoders[rank].x[0].copy_(torch.randn((TOKENS, HIDDEN), generator=make, device="cuda"))
    torch.cuda.synchronize()
    world.replay({rank: decoders[rank].graph for rank in who})
    torch.cuda.synchronize()


def expect(world, model, decoders, who):
    from tools.virtual_ranks import relative_error

    for rank in who:
        assert world.groups[rank].status == 0, (rank, world.groups[rank].suspects)
        for layer in range(LAYERS):
            x, got = decoders[rank].x[layer], decoders[rank].x[layer + 1]
            assert relative_error(got, model.reference(layer, x)) < 0.02, (rank, layer)


def test_decode_step_survives_a_silent_rank_with_one_capture(device):
    from tools.virtual_ranks import Rig, Sizes

    sizes = Sizes(ranks=RANKS, tokens=TOKENS, hidden=HIDDEN, topk=TOPK, experts=EXPERTS, layers=LAYERS, copies=2)
    with Rig(sizes=sizes, timeout_s=0.3, hard_timeout_s=5.0) as world:
        model = Model()
        world.enter_epoch(1, range(RANKS))
        decoders = [Decoder(world, model, rank) for rank in range(RANKS)]
        for seed in range(3):
            replay(world, decoders, range(RANKS), seed)
            expect(world, model, decoders, range(RANKS))
        rest = [0, 1, 3]
        replay(world, decoders, rest, 50)
        assert [world.groups[rank].status for rank in rest] == [1, 1, 1]  # nothing of this step may be sampled
        world.enter_epoch(2, rest)
        for seed in (50, 51):  # the same step again, then the next
            replay(world, decoders, rest, seed)
            expect(world, model, decoders, rest)
        assert [decoder.captures for decoder in decoders] == [1] * RANKS
