"""Models that others made are data: neither a folder of transformers' format nor a checkpoint's model runs code."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertForSequenceClassification

from configs import node
from email_rl.models.encoders import read_classifier
from email_rl.models.hf_io import FromFolder, describe, export, from_folder, restore
from email_rl.models.language_models import read_language_model
from email_rl.models.outcome_classifier import OutcomeClassifier
from email_rl.models.policy import LanguageModelPolicy
from email_rl.models.sampling_check import check_sampling
from email_rl.models.tokenized_mails import TokenizedMails
from tiny_email_trainer import GENERATION, policy, tokenizer

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


@pytest.mark.slow
def test_a_classifier_saved_in_bfloat16_is_read_in_float32(tmp_path):
    """A step of 1e-5 on a weight of 1 is below bfloat16's spacing of 2⁻⁷, and above float32's of 2⁻²³."""
    settings = {**SIZES, "intermediate_size": 16, "num_labels": 3}
    network = BertForSequenceClassification(BertConfig(**settings)).to(torch.bfloat16)
    export(tmp_path / "model", network, padded(tokenizer()))
    loaded, _ = read_classifier(str(tmp_path / "model"), 16)
    scorer = OutcomeClassifier.load(tmp_path / "model", torch.device("cpu"), 4)
    for model in (loaded, scorer.model):
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    weight = loaded.classifier.weight
    with torch.no_grad():
        weight.fill_(1.0).sub_(1e-5)
    assert (weight < 1).all()


def padded(words):
    """Give a tokenizer a token that pads."""
    words.pad_token = "<stop>"
    return words


# ── families of language models ─────────────────────────────────────────────────────────────────────────────────────
SIZES = {
    "vocab_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
FAMILIES = {
    "llama": SIZES,
    "qwen2": {**SIZES, "num_key_value_heads": 1},
    "cohere": {**SIZES, "logit_scale": 0.25},
    "granite": {**SIZES, "logits_scaling": 4.0},
    "gemma2": {**SIZES, "num_key_value_heads": 1, "head_dim": 8, "final_logit_softcapping": 1.0},
    "opt": {**SIZES, "ffn_dim": 24, "word_embed_proj_dim": 8, "do_layer_norm_before": False},
}


def of_family(name, **changes):
    """A policy on a small random model of a family, with logits that are far from equal."""
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **{**FAMILIES.get(name, SIZES), **changes}))
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(4 if weight.ndim > 1 else 1)
    return LanguageModelPolicy(network, tokenizer(), **GENERATION)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_the_probability_of_a_mail_is_that_of_transformers_whatever_the_family_does_to_logits(name):
    made = of_family(name)
    prompt, prompt_mask = made.tokenize_prompts(["a b c d", "e f"])
    response = torch.randint(0, 8, (2, 6), generator=torch.Generator().manual_seed(1))
    own = torch.ones_like(response, dtype=torch.bool)
    with torch.no_grad():
        log_prob = made(TokenizedMails(prompt, prompt_mask, response, own)).log_prob
        for row, (start, mail) in enumerate(zip(prompt_mask.logical_not().sum(1).tolist(), response)):
            alone = torch.cat((prompt[row, start:], mail))[None]  # without padding, by a plain call
            logits = made.language_model(input_ids=alone).logits[0, -7:-1]
            expected = logits.log_softmax(-1).gather(-1, mail[:, None])[:, 0]
            assert torch.allclose(log_prob[row], expected, atol=1e-5)
    check_sampling(made, ["a b c d", "e f"])


@pytest.mark.parametrize(
    "name, changes, said",
    [
        ("gpt_neo", {"num_layers": 2, "num_heads": 2, "attention_types": [[["local"], 2]], "window_size": 2}, "differ"),
        ("mistral", {"num_key_value_heads": 1, "sliding_window": 4}, "can't write mails here"),
        ("bloom", {"n_layer": 1, "n_head": 2}, "can't write mails here"),
    ],
)
def test_a_family_whose_mails_come_from_another_distribution_is_refused_in_one_line(name, changes, said):
    with pytest.raises(ValueError, match=f"algo.language_model: .*family '{name}'.*{said}") as caught:
        check_sampling(of_family(name, **changes), ["a b c d", "e f"])
    assert "\n" not in str(caught.value)


def test_a_sampler_that_scales_its_logits_otherwise_is_refused():
    made = policy()
    check_sampling(made, ["a", "a c"])
    sample = made.sample_responses
    made.sample_responses = lambda *args, **how: sample(*args, **{**how, "temperature": 1.2})
    with torch.no_grad():
        made.language_model.get_output_embeddings().weight.mul_(15)
    with pytest.raises(ValueError, match="family 'gpt2' are not drawn from the distribution"):
        check_sampling(made, ["a", "a c"])


@pytest.mark.parametrize("name", ["opt", "llama"])
def test_no_family_drops_out_even_in_training_mode(name):
    """Gradient checkpointing needs training mode."""
    dropping = {"dropout": 0.5, "layerdrop": 0.5, "attention_dropout": 0.5}
    made = of_family(name, **dropping)
    prompt, prompt_mask = made.tokenize_prompts(["a b"])
    mails = TokenizedMails(prompt, prompt_mask, torch.tensor([[1, 2, 3]]), torch.ones(1, 3, dtype=torch.bool))
    expected = made(mails).log_prob
    made.language_model.train()
    assert torch.equal(made(mails).log_prob, expected)
