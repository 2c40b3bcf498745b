"""Guards of PPO on mails: what in a rollout or an update says that training has left the ground it stands on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from email_rl.data.metrics import distinct_n
from email_rl.training.rollout import MailRollout


@dataclass(frozen=True, kw_only=True)
class GuardLimits:
    """Limits beyond which a warning is logged and printed."""

    ratio: float  # largest mean ratio π / π_old over the tokens of a minibatch
    kl: float  # least mean KL to the reference, nats a mail: an estimate of what can't be negative
    distinct_2: float  # least share of the distinct-2 that the first rollout had
    same_mail: float  # largest share of a rollout's mails that are one text, of contexts that differ
    length: float  # largest factor between the mean lengths of a rollout and of the first


class Guards:
    """Compares every rollout with the first one, whose policy is the reference."""

    def __init__(self, limits: GuardLimits):
        self.limits = limits
        self.first: tuple[float, float] | None = None  # distinct-2 and mean tokens of the first rollout

    def warnings(self, rollout: MailRollout, largest_ratio: float) -> list[str]:
        """Return what is wrong with a rollout and the update on it."""
        limits, found = self.limits, []
        kl = rollout.kl_to_reference().item()
        tokens = rollout.mails.response_mask.sum(1).float().mean().item()
        variety = distinct_n(rollout.texts, 2, 1000)
        if self.first is None:
            self.first = variety, tokens
        first_variety, first_tokens = self.first
        if largest_ratio > limits.ratio:
            found.append(
                f"the mean ratio of a minibatch's tokens to the policy that wrote them is {largest_ratio:.1f}, above "
                f"{limits.ratio:g}: the update is too large; lower algo.language_model.lr or algo.epochs"
            )
        if kl < limits.kl:
            found.append(
                f"the KL to the reference is {kl:.2f} nats a mail, below {limits.kl:g}: a KL can't be "
                "negative, so mails are not drawn from the distribution that they are scored by"
            )
        if variety < limits.distinct_2 * first_variety:
            found.append(
                f"distinct-2 is {variety:.3f}, {first_variety:.3f} at first: the policy repeats the same "
                "words; raise algo.kl_controller.coef, or lower its target_kl"
            )
        ((text, n),) = Counter(rollout.texts).most_common(1)
        contexts = len({context for context, other in zip(rollout.contexts, rollout.texts) if other == text})
        if n > limits.same_mail * len(rollout.texts) and contexts > 1:
            found.append(
                f"{n} of {len(rollout.texts)} mails, for {contexts} contexts, are one text: one answer for all; raise "
                "algo.kl_controller.coef, or lower its target_kl"
            )
        if not 1 / limits.length <= tokens / first_tokens <= limits.length:
            found.append(
                f"a mail has {tokens:.0f} tokens on average, {first_tokens:.0f} at first: the reward may pay for "
                "length (see reward_over_length in TensorBoard)"
            )
        return found

    def state_dict(self) -> dict:
        """Return what a resumed run compares with."""
        return {"first": list(self.first) if self.first else None}

    def load_state_dict(self, state: dict) -> None:
        """Restore the result of `state_dict`."""
        self.first = tuple(state["first"]) if state["first"] else None


def length_correlation(rollout: MailRollout) -> Tensor:
    """Return the correlation of proxy reward and length, in tokens, over a rollout's mails; 0 where one is constant."""
    reward = rollout.proxy_reward.float()
    tokens = rollout.mails.response_mask.sum(1).float()
    reward, tokens = reward - reward.mean(), tokens - tokens.mean()
    scale = (reward.square().sum() * tokens.square().sum()).sqrt()
    return torch.where(scale > 0, (reward * tokens).sum() / scale.clamp_min(1e-12), 0.0)
