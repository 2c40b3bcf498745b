"""When the training loop saves: by iterations, by the clock, when it is asked to stop, and at the end."""

from __future__ import annotations

import math

import pytest

from rlcore.runs.logger import NullLogger
from rlcore.training_loop import TrainingLoop
from toy_envs import Chain, make_ppo


@pytest.mark.parametrize(
    ("every", "seconds", "stop_after", "saved"),
    [
        (2, math.inf, None, [2, 4, 5]),  # by iterations, and at the end
        (100, 0.0, None, [1, 2, 3, 4, 5]),  # by the clock
        (100, 1e6, None, [5]),
        (100, math.inf, 3, [3]),  # when it is asked to stop
    ],
)
def test_a_checkpoint_comes_when_it_is_due(every, seconds, stop_after, saved):
    ppo = make_ppo(Chain(4), 5, num_steps=5, minibatches=1, checkpoint_every=every)
    seen: list[int] = []
    loop = TrainingLoop(
        ppo,
        NullLogger(),
        save=lambda: seen.append(ppo.iteration),
        save_seconds=seconds,
        should_stop=lambda: ppo.iteration == stop_after,
    )
    loop.run()
    assert seen == saved
