"""Lengths of prompts and mails from the data, whole characters, and folders that transformers alone can use."""

from __future__ import annotations

import pytest
import torch
from hydra.utils import instantiate
from transformers import AutoModelForCausalLM, AutoTokenizer

from configs import node
from email_rl.models.mail_lengths import fit_lengths, positions_needed
from email_rl.models.policy import LanguageModelPolicy
from tiny_email_trainer import GENERATION, language_model, policy, tokenizer

SETTINGS = {**GENERATION, "fitted_share": 0.75}


def tiny(texts, positions=lambda tokenizer: 0, **changes):
    small = {**node("../algo/language_model/gpt2_tiny", "env=email", "algo=ppo_kl"), "dim": 16, "heads": 2, "layers": 1}
    torch.manual_seed(0)
    return instantiate({**small, **changes}).build(texts, positions)


def test_of_fifty_mails_a_share_of_97_percent_is_49():
    texts = [" ".join(["a"] * n) for n in range(11, 61)]
    fitted = fit_lengths({**GENERATION, "fitted_share": 0.97}, tokenizer(), ["a"], texts)
    assert fitted["response_tokens"] == 1 + 59


def test_lengths_grow_until_prompts_and_a_share_of_the_mails_fit():
    contexts, texts = ["a"] * 7 + ["a b c d e f"], ["a " * n for n in (1, 2, 3, 4, 5, 8, 9, 30)]
    fitted = fit_lengths(SETTINGS, tokenizer(), contexts, texts)
    assert fitted == {**GENERATION, "prompt_tokens": 6, "response_tokens": 9}  # 8 tokens and the stop token
    assert fit_lengths({**SETTINGS, "fitted_share": 1.0}, tokenizer(), contexts, texts)["response_tokens"] == 31
    assert fit_lengths({**SETTINGS, "fitted_share": 0.0}, tokenizer(), contexts, texts) == GENERATION
    assert positions_needed(SETTINGS, tokenizer(), contexts, texts) == 15
    assert positions_needed(SETTINGS, tokenizer(), ["a"], ["a b"]) == 0  # what the settings hold anyway


def test_lengths_stay_within_the_positions_of_a_network():
    contexts, texts = ["a b c d e f"], ["a " * 60]
    fitted = fit_lengths(SETTINGS, tokenizer(), contexts, texts, positions=16)
    assert fitted["prompt_tokens"] + fitted["response_tokens"] <= 16
    LanguageModelPolicy(language_model(), tokenizer(), **fitted)


def test_a_network_from_scratch_has_the_positions_that_its_mails_need():
    for needed, expected in ((0, 128), (300, 300)):
        network, words = tiny(["some text"], lambda _, needed=needed: needed)
        assert network.config.n_positions == words.model_max_length == expected


def test_every_character_of_the_mails_is_a_token_of_its_own_and_none_is_ever_broken():
    """Any tokens at all, as an untrained model draws them, decode to whole characters."""
    text = "Don’t wait — “now” is čas, é, ü: 世界 🌱!"
    network, words = tiny([text] * 3, vocab_size=400)
    assert words.decode(words(text)["input_ids"]) == text
    for character in {c for c in text if ord(c) > 127}:
        assert len(words(character, add_special_tokens=False)["input_ids"]) == 1
    made = LanguageModelPolicy(network, words, **{**GENERATION, "response_tokens": 40})
    ids = torch.randint(1, len(words), (300, 40), generator=torch.Generator().manual_seed(0))
    assert any("\ufffd" in x for x in words.batch_decode(ids))  # else this would show nothing
    assert not any("\ufffd" in x for x in made.decode(ids, torch.ones_like(ids).bool()))
    whole = torch.tensor([words(text)["input_ids"]])
    assert made.decode(whole, torch.ones_like(whole).bool()) == [text]


def test_without_such_characters_the_vocabulary_is_the_plain_one():
    _, words = tiny(["plain words, plain words"])
    assert set(words.get_added_vocab()) == {"<|endoftext|>"}
    assert not any(len(piece) > 1 and ord(max(piece)) > 288 for piece in words.get_vocab())  # no merge of high bytes


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_transformers_alone_writes_the_same_mail_from_the_folder(kind, tmp_path):
    made = policy(kind, prompt_template="{context} c", temperature=0.7)
    context = "a d"
    made.export(tmp_path)
    network, words = (x.from_pretrained(tmp_path) for x in (AutoModelForCausalLM, AutoTokenizer))
    saved = network.generation_config
    assert (saved.do_sample, saved.temperature, saved.top_k, saved.top_p) == (True, 0.7, 0, 1.0)
    prompt = words(
        network.config.prompt_template.replace("{context}", context), add_special_tokens=False, return_tensors="pt"
    )
    ids = network.generate(input_ids=prompt["input_ids"], attention_mask=prompt["attention_mask"], do_sample=False)
    mail = words.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    greedy = {"temperature": 0.7, "top_k": 1, "top_p": 1.0, "batch_size": 1}
    _, texts = made.generate([context], 1, torch.Generator().manual_seed(0), **greedy)
    assert texts == [mail] and mail
