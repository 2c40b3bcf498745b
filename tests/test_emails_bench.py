"""The bench of mails, at a size that takes a second."""
from __future__ import annotations

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from test_conf import CONF

SMALL = ["bench.shape={vocab_size: 40, n_embd: 16, n_layer: 1, n_head: 2, n_positions: 32}", "bench.algo.mails=16",
         "bench.algo.writing.query_tokens=4", "bench.algo.writing.response_tokens=6",
         "bench.algo.rm={vocabulary: 100, dim: 16, layers: 1, heads: 2, hidden: 16, max_length: 32}"]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_iteration_is_timed_part_by_part(tmp_path, capsys, checkpointing):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("bench", overrides=["bench=emails", *SMALL, f"bench.algo.gradient_checkpointing={checkpointing}"])
    found = instantiate(cfg.bench, _convert_="all")(tmp_path, torch.device("cpu"), 0)
    seconds = found["seconds"]
    assert found["tokens"] == 16 * 6 and all(taken > 0 for taken in seconds.values())
    assert seconds["iteration"] == pytest.approx(seconds["sample, score, read"] + seconds["update"])
    assert found["sampling_ratio"] == pytest.approx(seconds["sampling, transformers' generate"] / seconds["sampling, ours"])
    assert "16 mails of 4 + 6 tokens; peak memory" in " ".join(capsys.readouterr().out.split())
