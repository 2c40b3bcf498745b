"""The replay buffer keeps the latest decisions, also over a checkpoint."""

from __future__ import annotations

import pytest
import torch

from rlcore.replay_buffer import ReplayBuffer

CPU = torch.device("cpu")


def test_memory_keeps_the_latest():
    memory = ReplayBuffer(5, 1, CPU)
    for k in range(4):
        x = torch.tensor([2.0 * k, 2.0 * k + 1])
        memory.add(x[:, None], x.long(), x)
    kept = memory.rows()
    assert sorted(kept.reward.tolist()) == [3, 4, 5, 6, 7] and len(memory) == 5
    assert torch.equal(kept.context[:, 0], kept.reward) and torch.equal(kept.action.float(), kept.reward)
    first = memory.rows(torch.tensor([0]))
    assert (first.context.shape, first.action.dtype, first.reward.shape) == ((1, 1), torch.long, (1,))
    other = ReplayBuffer(5, 1, CPU)
    other.load_state_dict(memory.state_dict())
    for m in (memory, other):
        m.add(torch.ones(1, 1), torch.ones(1).long(), torch.tensor([9.0]))
    assert torch.equal(memory.reward, other.reward) and 3 not in memory.reward


@pytest.mark.parametrize("size", [4, 6, 20])
def test_a_memory_of_another_size_is_refused_where_the_ring_would_break(size):
    memory = ReplayBuffer(5, 1, CPU)
    memory.add(torch.ones(3, 1), torch.ones(3).long(), torch.ones(3))
    larger = ReplayBuffer(9, 1, CPU)
    larger.load_state_dict(memory.state_dict())  # not yet full: no ring
    assert len(larger) == 3
    memory.add(torch.ones(4, 1), torch.ones(4).long(), torch.ones(4))
    other = ReplayBuffer(size, 1, CPU)
    with pytest.raises(ValueError, match=f"^algo.memory: expected 5, as in the checkpoint, got {size}$"):
        other.load_state_dict(memory.state_dict())
    assert len(other) == 0
