"""The benchmark of mails, at a size that takes a second."""

from __future__ import annotations

import pytest
import torch
from hydra.utils import instantiate
from transformers import GPT2LMHeadModel

from configs import composed
from rlcore.backends.cuda_graphs import WARM_UP_CALLS

SMALL = [
    "benchmark.repeats=2",
    "benchmark.shape={vocab_size: 40, n_embd: 16, n_layer: 1, n_head: 2, n_positions: 32}",
    "benchmark.known_words=20",
    "benchmark.algo.mails_per_iteration=16",
    "benchmark.algo.generation.prompt_tokens=4",
    "benchmark.algo.generation.response_tokens=6",
    "benchmark.algo.encoder={vocab_size: 100, dim: 16, layers: 1, heads: 2, ffn_dim: 16, max_length: 32}",
]


@pytest.mark.parametrize(
    "override",
    [
        "benchmark.algo.gradient_checkpointing=false",
        "benchmark.algo.gradient_checkpointing=true",
        "benchmark.execution=cudagraph",
    ],
)
def test_iterations_are_timed_part_by_part(tmp_path, capsys, monkeypatch, tape, override):
    asked = []
    theirs = GPT2LMHeadModel.generate
    monkeypatch.setattr(GPT2LMHeadModel, "generate", lambda self, **how: asked.append(how) or theirs(self, **how))
    cfg = composed("benchmark=speed/text_generation", *SMALL, override, name="bench")
    found = instantiate(cfg.benchmark, _convert_="all")(tmp_path, torch.device("cpu"), 0)
    seconds = found["seconds"]
    assert found["tokens"] == 16 * 6 and found["mails"] == 16 and all(taken > 0 for taken in seconds.values())
    assert seconds["sampling, ours"] < seconds["sample, score, read"] < seconds["iteration"]
    assert seconds["sampling, transformers' generate"] < seconds["iteration, transformers' generate"]
    assert found["sampling_ratio"] == pytest.approx(
        seconds["sampling, transformers' generate"] / seconds["sampling, ours"]
    )
    assert found["iteration_ratio"] == pytest.approx(
        seconds["iteration, transformers' generate"] / seconds["iteration"]
    )
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        "16 mails of 4 + 6 tokens; peak memory" in shown
        and f"{found['iteration_ratio']:.2f} × as fast as with" in shown
    )
    recorded = override == "benchmark.execution=cudagraph"
    assert len(asked) == 2 + (WARM_UP_CALLS + 1 if recorded else 0)  # of each repeat one iteration
    assert asked[0]["min_new_tokens"] == asked[0]["max_new_tokens"] == 6
    assert asked[0]["temperature"] == 1 and asked[0]["top_k"] == 0
    assert len(tape) == (5 if recorded else 0)  # prompts, a token's step, two readings, a gradient
