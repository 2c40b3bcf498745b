"""Sampling from a language model against transformers' own generate: logits, cut-offs, frequencies."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from email_rl.acceleration import RecordedDecoders, fuse_gelu
from email_rl.models.generation import generate, new_decoder, position_ids, response_mask, warp_logits

PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
NO_DROP = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def model(kind="gpt2", vocabulary=23, scale=15.0):
    """A small random model with logits spread far more than at initialisation."""
    torch.manual_seed(0)
    if kind == "gpt2":
        made = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocabulary,
                n_embd=32,
                n_layer=2,
                n_head=4,
                n_positions=32,
                bos_token_id=0,
                eos_token_id=0,
                tie_word_embeddings=False,
                **NO_DROP,
            )
        )
    else:
        made = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=32,
                bos_token_id=0,
                eos_token_id=0,
            )
        )
    with torch.no_grad():
        made.get_output_embeddings().weight.mul_(scale)
        made.get_input_embeddings().weight.mul_(scale)
    return made.eval()


def queries(lengths=(6, 3, 1), width=6, vocabulary=23):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, vocabulary, (len(lengths), width), generator=generator)
    mask = torch.arange(width)[None] >= width - torch.tensor(lengths)[:, None]
    return torch.where(mask, ids, 0), mask.long()


def uniforms(tokens, mails, seed=2):
    return torch.rand(tokens, mails, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_greedy_mails_are_those_of_transformers(kind):
    """top_k = 1 leaves one token, whatever the uniforms: cache and positions of padded prompts must be right."""
    lm, (ids, mask) = model(kind), queries()
    found = generate(lm, ids, mask, uniforms(9, 3), temperature=1.0, top_k=1, top_p=1.0)
    theirs = lm.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=9,
        min_new_tokens=9,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    assert torch.equal(found, theirs[:, ids.shape[1] :])
    assert len(found.unique()) > 3  # they say something


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_recorded_steps_write_the_same_mails(tape, kind):
    lm, (ids, mask) = model(kind), queries()
    one, other = (
        generate(lm, ids, mask, uniforms(9, 6), temperature=1.0, top_k=9, top_p=0.9, make_decoder=make_decoder)
        for make_decoder in (new_decoder, RecordedDecoders())
    )
    assert torch.equal(one, other) and len(tape) == 1


@pytest.mark.long
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("low", [False, True])
def test_steps_recorded_with_some_prompts_write_mails_for_others(tape, kind, low):
    """Also after the weights have moved, in bfloat16 too, and anew for other shapes."""
    lm, recorded = model(kind), RecordedDecoders()
    for k, (lengths, recordings) in enumerate(
        [  # a token's step with the first prompts of a shape, their reading with the fourth
            ((6, 3, 1), 1),
            ((2, 6, 4), 1),
            ((5, 1, 6), 1),
            ((4, 2), 2),
            ((1, 6), 2),
            ((3, 5), 2),
            ((2, 2), 3),
            ((6, 1), 3),
        ]
    ):
        ids, mask = queries(lengths)
        ids = torch.where(mask.bool(), (ids + k) % 22 + 1, 0)
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            one, other = (
                generate(
                    lm,
                    ids,
                    mask,
                    uniforms(9, 2 * len(ids), seed=k),
                    temperature=1.0,
                    top_k=9,
                    top_p=0.9,
                    make_decoder=make_decoder,
                )
                for make_decoder in (new_decoder, recorded)
            )
        assert torch.equal(one, other) and len(tape) == recordings
        with torch.no_grad():
            for p in lm.parameters():
                p.mul_(1.1)
    assert copy.deepcopy(recorded).decoder is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("low", [False, True])
def test_on_a_gpu_recorded_steps_write_the_same_mails(low):
    lm, recorded = model().cuda(), RecordedDecoders()
    for k, lengths in enumerate([(6, 3, 1), (2, 6, 4), (5, 1, 6), (4, 2), (1, 6), (3, 5), (2, 2), (6, 1)]):
        ids, mask = (x.cuda() for x in queries(lengths))
        with torch.autocast("cuda", torch.bfloat16, enabled=low):
            one, other = (
                generate(lm, ids, mask, uniforms(9, 2 * len(ids), seed=k).cuda(), **PLAIN, make_decoder=make_decoder)
                for make_decoder in (new_decoder, recorded)
            )
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_each_token_is_the_inverse_of_its_uniform_under_a_fresh_forward(kind):
    """Cached logits equal those of the whole text at once: every token is where the cumulative probabilities pass u."""
    lm, (ids, mask) = model(kind), queries()
    u = uniforms(8, 6)
    found = generate(lm, ids, mask, u, **PLAIN)
    whole = torch.cat((ids.repeat_interleave(2, 0), found), 1)
    seen = torch.cat((mask.repeat_interleave(2, 0), torch.ones_like(found)), 1)
    with torch.no_grad():
        logits = lm(input_ids=whole, attention_mask=seen, position_ids=position_ids(seen)).logits[
            :, ids.shape[1] - 1 : -1
        ]
    cdf = logits.double().softmax(-1).cumsum(-1)
    below = torch.where(found > 0, cdf.gather(-1, (found - 1).clamp_min(0)[..., None])[..., 0], 0.0)
    above = cdf.gather(-1, found[..., None])[..., 0]
    assert (below - 1e-5 <= u.T).all() and (u.T <= above + 1e-5).all()


def test_padding_changes_nothing():
    lm, (ids, mask) = model(), queries((3, 3, 3))
    more = torch.nn.functional.pad(ids, (4, 0), value=7)  # ids below the mask may be anything
    u = uniforms(8, 3)
    assert torch.equal(
        generate(lm, ids, mask, u, **PLAIN), generate(lm, more, torch.nn.functional.pad(mask, (4, 0)), u, **PLAIN)
    )


def test_samples_of_a_prompt_equal_reading_the_prompt_for_each():
    lm, (ids, mask) = model(), queries()
    u = uniforms(8, 12)
    assert torch.equal(
        generate(lm, ids, mask, u, **PLAIN),
        generate(lm, ids.repeat_interleave(4, 0), mask.repeat_interleave(4, 0), u, **PLAIN),
    )


@pytest.mark.parametrize(
    "temperature, top_k, top_p",
    [(0.7, 0, 1.0), (1.3, 5, 1.0), (1.0, 0, 0.8), (0.9, 9, 0.6), (1.0, 0, 1e-9), (1.0, 500, 1.0)],
)
def test_what_is_cut_off_is_what_transformers_cuts_off(temperature, top_k, top_p):
    logits = 2 * torch.randn(50, 40, generator=torch.Generator().manual_seed(3))
    expected = TemperatureLogitsWarper(temperature)(None, logits) if temperature != 1 else logits
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    assert torch.equal(warp_logits(logits, temperature, top_k, top_p), expected)


@pytest.mark.long
def test_frequencies_are_those_of_transformers():
    """20,000 mails of two tokens (23² pairs) each: their total variation is as of two samples of one distribution."""
    lm, (ids, mask) = model(scale=5.0), queries((2,), width=4)
    settings, n = {"temperature": 0.8, "top_k": 8, "top_p": 0.9}, 20_000
    ours = generate(lm, ids, mask, uniforms(2, n), **settings)
    torch.manual_seed(0)
    theirs = lm.generate(
        input_ids=ids.expand(n, -1),
        attention_mask=mask.expand(n, -1),
        max_new_tokens=2,
        min_new_tokens=2,
        do_sample=True,
        pad_token_id=0,
        eos_token_id=None,
        **settings,
    )[:, ids.shape[1] :]

    def counts(x):
        return torch.bincount(x[:, 0] * 23 + x[:, 1], minlength=23 * 23).double()

    a, b = counts(ours), counts(theirs)
    used = a + b > 0
    chi = ((a - b).square() / (a + b))[used].sum().item()
    freedom = int(used.sum()) - 1
    assert freedom > 10 and chi < freedom + 4 * (2 * freedom) ** 0.5


def test_a_mail_ends_with_its_first_stop():
    response = torch.tensor([[5, 9, 4, 9], [9, 9, 9, 9], [1, 2, 3, 4]])
    assert response_mask(response, 9).tolist() == [[True, True, False, False], [True, False, False, False], [True] * 4]


def test_a_fused_model_is_the_model_but_for_rounding():
    lm, (ids, mask) = model(), queries()
    expected = lm(input_ids=ids, attention_mask=mask).logits
    fuse_gelu(lm)
    assert [type(block.mlp.act) for block in lm.transformer.h] == [torch.nn.GELU] * 2
    torch.testing.assert_close(lm(input_ids=ids, attention_mask=mask).logits, expected, rtol=1e-4, atol=1e-4)
