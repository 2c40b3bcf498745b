"""Models that others made are data: neither a folder of transformers' format nor a checkpoint's model runs code."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from transformers import AutoModelForCausalLM

from configs import node
from email_rl.models.hf_io import FromFolder, describe, export, from_folder, restore
from email_rl.models.language_models import read_language_model
from tiny_email_trainer import policy

TEXTS = ["hello ann", "good day bob"]


def tiny_model():
    """A causal language model of a few hundred weights, and its tokenizer."""
    settings = {**node("../algo/language_model/gpt2_tiny", "algo=ppo_kl"), "dim": 4, "heads": 1, "layers": 1}
    return instantiate({**settings, "vocab_size": 300}).build(TEXTS, lambda tokenizer: 16)


def with_code_of_its_own(config: str, marker: Path) -> dict[str, str]:
    """A configuration that asks transformers to import a file beside it, and this file, which leaves a marker."""
    classes = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    return {
        "config.json": json.dumps({**json.loads(config), "model_type": "evil", "auto_map": classes}),
        "evil.py": f"from pathlib import Path\nPath({str(marker)!r}).touch()\n",
    }


class Payload:
    """Leaves a marker where it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["code beside the configuration", "pickled weights"])
def test_a_folder_runs_no_code(tmp_path, kind):
    folder, marker = tmp_path / "model", tmp_path / "marker"
    export(folder, *tiny_model())
    if kind == "pickled weights":
        (folder / "model.safetensors").unlink()
        torch.save({"w": Payload(marker)}, folder / "pytorch_model.bin")
    else:
        for name, content in with_code_of_its_own((folder / "config.json").read_text(), marker).items():
            (folder / name).write_text(content)
    with pytest.raises(ValueError, match="key: '.*model' is no language model that transformers can load") as caught:
        from_folder(str(folder), "key", read_language_model, "language model")
    assert "\n" not in str(caught.value) and not marker.exists()


def test_a_checkpoint_runs_no_code_and_writes_into_no_other_folder(tmp_path):
    marker = tmp_path / "marker"
    files = describe(*tiny_model())
    with pytest.raises(ValueError, match="config.json in the checkpoint names code of its own"):
        restore({**files, **with_code_of_its_own(files["config.json"], marker)}, AutoModelForCausalLM)
    assert not marker.exists()
    outside = tmp_path / "outside"
    model, _ = restore({**files, str(outside): "x", "../../outside": "x"}, AutoModelForCausalLM)
    assert model.config.n_embd == 4 and not outside.exists()


def test_a_control_token_in_a_users_text_is_refused():
    assert policy().full_prompts(["a b"]) == [[1, 2]]
    for tokenize, kind in ((policy().full_prompts, "context"), (policy().tokenize_responses, "e-mail")):
        with pytest.raises(ValueError, match=f"{kind} 'a <stop> b': expected no '<stop>', which is a control token"):
            tokenize(["b", "a\n<stop> b"])


def test_a_folder_that_was_trained_again_is_another_source_for_the_cache(tmp_path):
    source = FromFolder(path=str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"one")
    before = repr(source)
    assert repr(FromFolder(path=str(tmp_path))) == before
    (tmp_path / "model.safetensors").write_bytes(b"other")
    assert repr(source) != before and repr(FromFolder(path=None)) == "FromFolder(path=None, files=[])"
