"""How policies that write mails are compared: KL, baselines, intervals, titles."""

from __future__ import annotations

import pytest
import torch

from configs import composed
from email_rl.evaluation.policy_evaluation import STREAMS, MailPolicyEvaluator, train_to_kl
from email_rl.evaluation.policy_figures import PolicyMails, gain_over_reference, text_figures, true_figures
from email_rl.evaluation.policy_report import mails_title
from rlcore.algorithm import Algorithm
from tiny_email_trainer import trainer


class Steps(Algorithm):
    """Each iteration measures the KL of the weight, and then raises the weight by 2."""

    iterations, iteration, steps_done, checkpoint_every = 9, 0, 0, 100
    kl_to_reference = torch.tensor(0.0)

    def __init__(self):
        self.policy = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(self.policy.weight)

    def iterate(self, progress):
        self.kl_to_reference = self.policy.weight.detach()[0, 0].clone()
        with torch.no_grad():
            self.policy.weight += 2
        return {}

    def state_dict(self):
        raise NotImplementedError

    load_state_dict = load_policy = lambda self, state: None


@pytest.mark.parametrize("kl, kept", [(4.5, 4.0), (5.5, 6.0), (6.0, 6.0), (100.0, 16.0)])
def test_a_baseline_is_trained_to_the_kl_nearest_the_policys(kl, kept):
    made = Steps()
    train_to_kl(made, kl)
    assert made.policy.weight.item() == kept


def test_the_kl_of_mails_is_known_only_at_the_policys_own_distribution():
    made = trainer()
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "batch_size": 8}
    for changes in ({}, {"temperature": 0.7}, {"top_k": 3}, {"top_p": 0.9}):
        evaluator = MailPolicyEvaluator.__new__(MailPolicyEvaluator)
        evaluator.seed, evaluator.sampling = 0, settings | changes
        mails = evaluator.generate(made.policy, made.reference, ["a", "b"], "test")
        assert (mails.kl is None) == bool(changes)


def test_candidates_have_random_numbers_of_their_own():
    assert len(set(STREAMS.values())) == len(STREAMS)


def test_the_best_of_n_has_the_highest_score_of_training_a_mail_without_an_end_its_fixed_one():
    made = trainer("algo.missing_eos_score=-9.0", "algo.generation.response_tokens=3")
    evaluator = MailPolicyEvaluator.__new__(MailPolicyEvaluator)
    evaluator.seed, evaluator.best_of = 0, 4
    evaluator.sampling = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "batch_size": 8}
    contexts = ["a", "a c"] * 8
    drawn = evaluator.generate(made.reference, None, contexts, "best", 4)
    best = evaluator.best_of_n(made, contexts)
    cut_but_rewarded = 0
    for i in range(len(contexts)):
        candidates = range(4 * i, 4 * i + 4)
        reward = made.rewards([drawn.contexts[k] for k in candidates], [drawn.texts[k] for k in candidates]).tolist()
        ended = [bool(drawn.has_ended[k]) for k in candidates]
        score = [r if end else -9.0 for r, end in zip(reward, ended)]  # mean 0 and deviation 1 before `setup`
        assert best.texts[i] == drawn.texts[4 * i + score.index(max(score))]
        cut_but_rewarded += score.index(max(score)) != reward.index(max(reward))
    assert cut_but_rewarded > 0  # else the test would say nothing


def test_few_contexts_have_students_interval_and_distinct_2_is_of_one_mail_a_context():
    p = torch.tensor([[0.9, 0.0, 0.1], [0.0, 0.0, 1.0], [0.5, 0.0, 0.5]])
    mails = PolicyMails(["a", "b", "c"], ["x y", "x y", "y z"], None, None)
    found = true_figures(p, torch.tensor([-1.0, 0.5, 2.0]), mails, "gold")
    half = 4.302653 * torch.tensor([0.1, 1.0, 0.5]).std().item() / 3**0.5  # Student's t with 2 degrees of freedom
    assert found["conversion_ci"] == pytest.approx([max(0, 1.6 / 3 - half), min(1, 1.6 / 3 + half)])
    narrow = true_figures(0.5 + 0.1 * (p - 0.5), torch.tensor([-1.0, 0.5, 2.0]), mails, "gold")
    assert narrow["conversion_ci"][1] - narrow["conversion"] == pytest.approx(0.1 * half, rel=1e-5)
    twice = mails._replace(contexts=["a", "a", "b", "b"], texts=["x y", "x y", "y z", "x y"], samples=2)
    assert text_figures(twice, 40)["distinct_2"] == 1.0


def test_the_gain_over_the_reference_has_students_interval_of_paired_differences():
    own = torch.tensor([[0.0, 0.0, 1.0], [0.5, 0.0, 0.5], [1.0, 0.0, 0.0]], dtype=torch.float64)
    reference = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64).expand(3, 3)
    found = gain_over_reference(own, reference, torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64))
    half = 4.302653 * 1.5 / 3**0.5  # gains 3, 1.5 and 0; Student's t with 2 degrees of freedom
    assert found["true_gain"] == pytest.approx(1.5)
    assert found["true_gain_ci"] == pytest.approx([1.5 - half, 1.5 + half], rel=1e-6)


def test_a_reference_of_another_prompt_template_is_refused():
    sources = trainer().sources
    sources._check_template(None)
    sources._check_template("{context}")
    with pytest.raises(ValueError, match="prompt_template: expected 'To: {context}', .* got '{context}'"):
        sources._check_template("To: {context}")


def test_the_title_counts_the_contexts_that_training_has_not_seen():
    title = mails_title(8, ["a", "a", "b", "c"], {"a", "z"}, "x.csv")
    assert title == "8 mails for the contexts of 4 test mails of x.csv: 3 contexts, 2 of them not in training mails"


@pytest.mark.parametrize("algo", ["ppo_kl", "sft"])
def test_mails_are_judged_at_the_temperature_of_training(algo):
    cfg = composed(f"algo={algo}", "env=email", "algo.generation.temperature=0.7")
    assert cfg.env.evaluation.sampling.temperature == 0.7
