"""A check of a language model before training: mails are drawn from the distribution that they are scored by.

Some families of models mask, scale or cache in ways of their own. Where the sampler or the probabilities of mails
missed one, PPO's ratios, the KL and the entropy would be those of a distribution that nothing was drawn from, and
nothing would tell: every ratio is 1 before the first update.
"""

from __future__ import annotations

import torch
from torch import Tensor

from email_rl.models.generation import position_ids
from email_rl.models.policy import LanguageModelPolicy
from email_rl.models.tokenized_mails import TokenizedMails

TOLERANCE = 1e-3  # of a probability, and of a log-probability in nats; rounding in float32 is below 1e-5


@torch.no_grad()
def check_sampling(policy: LanguageModelPolicy, contexts: list[str]) -> None:
    """Raise ValueError, in one line, where a policy's mails or their probabilities are not transformers' own.

    Draws a mail for each of the contexts. Each token must be the inverse of its uniform number under the distribution
    by a plain call of the model, and the policy's log-probability of the token must be that distribution's.
    """
    family = policy.language_model.config.model_type
    precision, policy.precision = policy.precision, "float32"
    try:
        off = _largest_error(policy, contexts)
    except Exception as error:  # whatever a family can't do, the user needs the same line
        raise ValueError(
            f"algo.language_model: a model of the family '{family}' can't write mails here ({_first_line(error)}); "
            "expected one whose attention takes a mask of every token, such as gpt2, llama, opt, phi or qwen2"
        ) from error
    finally:
        policy.precision = precision
    if not off < TOLERANCE:
        raise ValueError(
            f"algo.language_model: mails of this model of the family '{family}' are not drawn from the distribution "
            f"that transformers computes for them (they differ by {off:.3g}); a window of attention shorter than "
            "prompt and mail is one cause; expected another model, or shorter algo.generation.prompt_tokens and "
            "response_tokens"
        )


def _largest_error(policy: LanguageModelPolicy, contexts: list[str]) -> float:
    """Return the largest distance of a uniform number from its token's interval, or of two log-probabilities."""
    prompt, prompt_mask = policy.tokenize_prompts(contexts)
    generator = torch.Generator(policy.device).manual_seed(0)
    u = torch.rand(policy.response_tokens, len(contexts), generator=generator, device=policy.device)
    response = policy.sample_responses(prompt, prompt_mask, u, temperature=policy.temperature, top_k=0, top_p=1.0)
    mails = TokenizedMails(prompt, prompt_mask, response, torch.ones_like(response, dtype=torch.bool))
    log_prob = _plain_log_probs(policy, mails)
    own = log_prob.gather(-1, response[..., None])[..., 0]
    upto = log_prob.exp().cumsum(-1)
    above = u.T - upto.gather(-1, response[..., None])[..., 0]
    below = torch.where(response > 0, upto.gather(-1, (response - 1).clamp_min(0)[..., None])[..., 0], 0.0) - u.T
    apart = (policy(mails).log_prob - own).abs()
    # an unlikely token's log-probability is uncertain by rounding; its weight is its probability
    return torch.stack((above, below, apart * own.exp())).max().item()


def _plain_log_probs(policy: LanguageModelPolicy, mails: TokenizedMails) -> Tensor:
    """Return log-probabilities of all tokens at each place of the mails [B, R, V], by transformers without a cache."""
    ids = torch.cat((mails.prompt, mails.response), 1)
    mask = torch.cat((mails.prompt_mask, mails.response_mask.long()), 1)
    logits = policy.language_model(input_ids=ids, attention_mask=mask, position_ids=position_ids(mask)).logits
    return (logits[:, mails.prompt.shape[1] - 1 : -1].double() / policy.temperature).log_softmax(-1)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__
