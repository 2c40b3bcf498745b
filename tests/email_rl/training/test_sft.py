"""The warm start on few mails: which mails it uses, with which weights, and what it leaves out."""

from __future__ import annotations

import pytest
import torch
from hydra.utils import instantiate

from configs import composed
from email_rl.data.mails import Mails
from email_rl.training.sft_mails import outcome_weights, weighted_mails
from mail_files import write_csv
from templated_mails import templated_rows

SMALL = ["algo=sft", "env=email", "algo.language_model.dim=16", "algo.language_model.heads=2"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    rows = templated_rows(60)
    rows[0][1] += " word" * 300  # far longer than the others
    return write_csv(tmp_path_factory.mktemp("mails") / "mails.csv", rows)


def build(path, *overrides):
    cfg = composed(*SMALL, f"env.data={path}", *overrides)
    env = instantiate(cfg.env, _convert_="all")("cpu", 0)
    return env, instantiate(cfg.algo, _convert_="all")(env, 0)


def test_other_outcomes_are_read_where_few_mails_have_a_reply():
    mails = Mails(["c"] * 6, ["t"] * 6, torch.tensor([0, 0, 0, 1, 1, 2]))
    assert outcome_weights(mails, [1, 2], enough_mails=4, other_weight=0.3) == [0.3, 1.0, 1.0]
    assert outcome_weights(mails, [1, 2], enough_mails=3, other_weight=0.3) == [0.0, 1.0, 1.0]


def test_the_cache_knows_a_reference_whatever_the_learning_rate_of_ppo():
    def known(*overrides):
        return repr(instantiate(composed(*SMALL, *overrides).algo.language_model))

    assert known() == known("algo.language_model.lr=1e-3") != known("algo.language_model.sft_lr=1e-3")


class Counted:
    """A policy with room for `response_tokens`, whose tokens are words."""

    response_tokens, prompt_tokens, stop_token, device = 5, 9, 0, torch.device("cpu")

    def tokenize_responses(self, texts):
        return [[len(word) for word in text.split()] + [0] for text in texts]

    def full_prompts(self, contexts):
        return [[1]] * len(contexts)

    def tokenize_prompts(self, contexts):
        return torch.ones(len(contexts), 1), torch.ones(len(contexts), 1)


def test_the_heaviest_mails_are_used_where_not_all_are(capsys):
    mails = Mails(["c"] * 5, ["a", "aa", "aaa", "aaaa", "aaaaa"], torch.tensor([0, 1, 0, 2, 0]))
    for most, used, weights in ((3, [1, 2, 4], [0.25, 1, 1]), (2, [2, 4], [1, 1]), (None, [1, 2, 3, 4, 5], None)):
        tokens, found = weighted_mails(Counted(), mails, range(5), [0.25, 1.0, 1.0], most, "training", "x.csv")
        assert tokens.response[:, 0].tolist() == used
        assert weights is None or found.tolist() == weights
        said = f"the warm start reads {most} of the 5 training mails that it may use (algo.sft.max_mails)"
        assert (said in capsys.readouterr().err) == (most is not None)
    order = [4, 3, 2, 1, 0]  # of mails of one weight the first in this order are taken
    tokens, _ = weighted_mails(Counted(), mails, order, [0.25, 1.0, 1.0], 3, "training", "x.csv")
    assert tokens.response[:, 0].tolist() == [2, 4, 5]


@pytest.mark.slow
def test_the_loss_weighs_tokens_by_their_mails_outcome(path):
    env, agent = build(path)
    assert len(agent.train_weights) > (env.train.outcome > 0).sum()
    mails, weights = agent.train_mails, agent.train_weights
    log_prob = agent.policy(mails).log_prob.double()
    total = count = 0.0
    for i, weight in enumerate(weights.tolist()):
        own = mails.response_mask[i]
        total -= weight * log_prob[i, own].sum().item()
        count += weight * own.sum().item()
    assert agent.loss(mails, weights).item() == pytest.approx(total / count, rel=1e-5)
    assert sorted(set(weights.tolist())) == pytest.approx([0.3, 1.0])
    light = (weights < 1).nonzero()[:, 0]  # a batch of light mails alone: a small loss, and a small step
    own = mails.response_mask[light]
    plain = -log_prob[light][own].mean().item()
    all_own = mails.response_mask.sum(1)
    mean_weight = ((weights * all_own).sum() / all_own.sum()).item()
    assert agent.loss(mails.select(light), weights[light]).item() == pytest.approx(0.3 / mean_weight * plain, rel=1e-4)


@pytest.mark.slow
def test_a_mail_that_does_not_fit_is_left_out_and_counted_a_prompt_that_is_cut_too(path, capsys):
    env, agent = build(path, "algo.generation.fitted_share=0.9")
    said = capsys.readouterr().err
    sides = {"training": env.train, "validation": env.valid}
    side = next((name for name, mails in sides.items() if any(" word word" in text for text in mails.texts)), None)
    if side:  # the long mail may be a test mail
        assert f"1 of {len(sides[side])} {side} mails have more than" in said
    assert "lose their beginning" not in said  # every prompt fits
    assert all(len(row) <= agent.policy.prompt_tokens for row in agent.policy.full_prompts(env.test.contexts))
    build(path, "algo.generation.fitted_share=0.0", "algo.generation.prompt_tokens=5")
    assert f"{len(env.train)} of {len(env.train)} contexts of training mails have more than 5 tokens" in (
        capsys.readouterr().err
    )


@pytest.mark.slow
def test_training_ends_where_validation_stops_improving(path):
    _, agent = build(path, "algo.patience=40")
    for agent.updates_done, loss, stalled in ((20, 1.0, False), (40, 1.1, False), (60, 1.1, True), (80, 0.9, False)):
        agent.observe_validation({"validation/token_loss": loss})
        assert agent.has_converged is stalled
    assert agent.best_at == 80


@pytest.mark.slow
def test_a_policy_that_learned_from_mails_alone_is_shown_beside_them(path):
    """Of a CSV nobody knows what is true, and there is no reward model and no reference."""
    _, agent = build(path, "env.evaluation.test_mails=6", "algo.generation.response_tokens=8")
    rows = agent.make_evaluator().evaluate(agent, "sft").to_metrics()
    for row in (rows["sent"], rows["sft"]):
        assert all(row[key] is None for key in ("proxy_reward", "true_reward", "conversion", "kl"))
        assert row["mails"] == 6 and 0 < row["distinct_2"] <= 1
    assert rows["sft"]["mean_words"] > 0 and "stopped" not in rows["sent"] and 0 <= rows["sft"]["stopped"] <= 1
