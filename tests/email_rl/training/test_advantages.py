"""From scores of mails to advantages of tokens: against scalar versions, and the token that gets the score."""

from __future__ import annotations

import math

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from configs import CONF, node
from email_rl.training.advantages import last_token
from email_rl.training.kl_controller import AdaptiveKLCoefficient, FixedKLCoefficient
from envs.value_ranges import range_of, read_file

LENGTHS = (5, 1, 3, 5, 2, 4, 5, 3)  # of mails of at most 5 tokens; those of 5 were cut or ended there


def estimator(name, **changes):
    """Instantiate conf/algo/advantage/NAME.yaml with some of its numbers replaced."""
    return instantiate(OmegaConf.merge(node(f"../algo/advantage/{name}", "algo=ppo_kl"), changes))


@pytest.fixture
def mails():
    generator = torch.Generator().manual_seed(0)
    response_mask = torch.arange(5)[None] < torch.tensor(LENGTHS)[:, None]
    score, ratio, value = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((8,), (8, 5), (8, 5))
    )
    return score, ratio, response_mask, value, torch.tensor(0.3, dtype=torch.float64)


def rewards(score, ratio, length, coef):
    """The token rewards of a mail, by hand."""
    return [-coef * ratio[t] + (score if t == length - 1 else 0.0) for t in range(length)]


def whitened(rows):
    flat = [x for row in rows for x in row]
    mean = sum(flat) / len(flat)
    std = math.sqrt(sum((x - mean) ** 2 for x in flat) / len(flat) + 1e-8)
    return [[(x - mean) / std for x in row] for row in rows]


def compare(advantage, rows):
    for found, expected in zip(advantage.tolist(), rows):
        assert found == pytest.approx(list(expected) + [0.0] * (5 - len(expected)), abs=1e-6)


@pytest.mark.parametrize("gamma, lam, whiten", [(1.0, 0.95, False), (0.9, 0.5, False), (1.0, 1.0, True)])
def test_gae_is_the_scalar_recursion_of_every_mail(mails, gamma, lam, whiten):
    score, ratio, _response_mask, value, coef = mails
    advantage, target = estimator("gae", gamma=gamma, lam=lam, whiten=whiten)(*mails)
    rows = []
    for i, length in enumerate(LENGTHS):
        r, v, trace, row = rewards(score[i].item(), ratio[i].tolist(), length, coef.item()), value[i].tolist(), 0.0, []
        for t in reversed(range(length)):
            following = v[t + 1] if t + 1 < length else 0.0
            trace = r[t] + gamma * following - v[t] + gamma * lam * trace
            row.insert(0, trace)
        rows.append(row)
        assert target[i, :length].tolist() == pytest.approx([a + b for a, b in zip(row, v)], abs=1e-9)
    compare(advantage, whitened(rows) if whiten else rows)


def test_rloo_leaves_one_out_and_sums_to_nothing(mails):
    score, ratio, _response_mask, _value, coef = mails
    advantage, _ = estimator("rloo", samples_per_prompt=4)(*mails)
    total = [sum(rewards(score[i].item(), ratio[i].tolist(), n, coef.item())) for i, n in enumerate(LENGTHS)]
    expected = [total[i] - sum(total[j] for j in range(i // 4 * 4, i // 4 * 4 + 4) if j != i) / 3 for i in range(8)]
    compare(advantage, [[a] * n for a, n in zip(expected, LENGTHS)])
    assert advantage[:4, 0].sum().item() == pytest.approx(0, abs=1e-9)


def test_grpo_standardises_scores_within_a_prompt_and_leaves_the_kl_to_the_loss(mails):
    score, ratio, response_mask, value, coef = mails
    made = estimator("grpo", samples_per_prompt=4, eps=1e-4)
    advantage, _ = made(score, 1e3 * ratio, response_mask, value, coef)
    group = score[:4]
    expected = ((group - group.mean()) / (group.std() + 1e-4)).tolist()
    compare(advantage[:4], [[a] * n for a, n in zip(expected, LENGTHS)])
    assert made.kl_in_loss and not estimator("rloo").kl_in_loss


@pytest.mark.parametrize("samples", [1, 4])
def test_reinforce_pp_whitens_rewards_to_go_over_the_batch(mails, samples):
    score, ratio, _response_mask, _value, coef = mails
    advantage, _ = estimator("reinforce_pp", samples_per_prompt=samples, gamma=0.9)(*mails)
    if samples > 1:
        score = score - score.view(-1, samples).mean(1).repeat_interleave(samples)
    rows = []
    for i, length in enumerate(LENGTHS):
        r = rewards(score[i].item(), ratio[i].tolist(), length, coef.item())
        rows.append([sum(0.9 ** (k - t) * r[k] for k in range(t, length)) for t in range(length)])
    compare(advantage, whitened(rows))


def test_reward_weighted_gives_every_token_its_mails_score(mails):
    score, _ratio, _response_mask, _value, _coef = mails
    compare(estimator("reward_weighted")(*mails)[0], [[s] * n for s, n in zip(score.tolist(), LENGTHS)])


@pytest.mark.parametrize("name", ["gae", "rloo", "grpo", "reinforce_pp", "reward_weighted"])
def test_what_comes_after_a_mails_end_changes_nothing(mails, name):
    score, ratio, response_mask, value, coef = mails
    made = estimator(name)
    advantage, _ = made(score, ratio, response_mask, value, coef)
    other, _ = made(
        score, torch.where(response_mask, ratio, 1e6), response_mask, torch.where(response_mask, value, -1e6), coef
    )
    assert torch.equal(advantage, other) and not advantage[~response_mask].any()


def test_the_score_lands_on_the_last_token_that_was_generated(mails):
    """For early ends as for full-length mails: at V = 0 and λ = 1 both get the score itself on every token."""
    score, ratio, response_mask, value, coef = mails
    advantage, _ = estimator("gae", lam=1.0, whiten=False)(score, 0 * ratio, response_mask, 0 * value, coef)
    compare(advantage, [[s] * n for s, n in zip(score.tolist(), LENGTHS)])
    assert last_token(response_mask).sum(1).tolist() == [1] * 8
    assert last_token(response_mask).long().argmax(1).tolist() == [n - 1 for n in LENGTHS]


def adaptive(**changes):
    settings = {"coef": 0.2, "target_kl": 6.0, "horizon": 10_000, "gain": 0.0, "error_clip": 0.2}
    return AdaptiveKLCoefficient(torch.device("cpu"), **(settings | changes))


def test_the_adaptive_weight_follows_the_published_rule():
    made = adaptive()
    made.update(torch.tensor(6.6), 64)
    assert made.coef.item() == pytest.approx(0.2 * (1 + 0.1 * 64 / 10_000))
    for kl, error in ((60.0, 0.2), (60.0, 0.2), (0.1, -0.2)):  # clipped both ways
        before = made.coef.item()
        made.update(torch.tensor(kl), 64)
        assert made.coef.item() == pytest.approx(before * (1 + error * 64 / 10_000))
    fixed = FixedKLCoefficient(torch.device("cpu"), coef=0.2)
    fixed.update(torch.tensor(60.0), 64)
    assert fixed.coef.item() == pytest.approx(0.2)


def test_below_the_target_the_coefficient_is_its_least():
    """So that it is not spent on the way from the reference to the target."""
    made = adaptive(gain=2.0, error_clip=1.0)
    for kl in (0.0, 1.0, 5.9, 6.0):
        made.update(torch.tensor(kl), 2000)
        assert made.coef.item() == made.integral.item() == pytest.approx(0.2)


def test_a_least_coefficient_of_0_which_no_error_could_raise_is_out_of_range():
    file = read_file(CONF / "algo/kl_controller/adaptive.yaml")
    coef = range_of("coef", file)
    assert 0.0 not in coef and 0.01 in coef


def test_the_proportional_part_lasts_as_long_as_the_error():
    made = adaptive(gain=2.0, error_clip=1.0)
    made.update(torch.tensor(9.0), 1000)
    integral = 0.2 * (1 + 0.5 * 0.1)
    assert made.coef.item() == pytest.approx(integral * math.exp(2.0 * 0.5))
    made.update(torch.tensor(6.0), 1000)
    assert made.coef.item() == pytest.approx(integral)


def test_the_proportional_part_damps_the_swings_of_the_kl():
    """On a policy whose KL rises where the coefficient is below .2, and falls where it is above."""

    def course(gain):
        made, kl, kls = adaptive(coef=0.03, horizon=640, gain=gain, error_clip=1.0), 0.0, []
        for _ in range(120):
            kl = max(0.0, kl + 0.8 * math.tanh(math.log(0.2 / made.coef.item())))
            made.update(torch.tensor(kl), 128)
            kls.append(kl)
        return torch.tensor(kls)

    damped, swinging = course(2.0)[40:], course(0.0)[40:]
    assert damped.sub(6).abs().max() < 0.6 and swinging.sub(6).abs().max() > 2.5


def test_a_restored_controller_goes_on_as_before():
    for kl in (9.0, 7.0):
        made, other = adaptive(gain=2.0, error_clip=1.0), adaptive(gain=2.0, error_clip=1.0)
        made.update(torch.tensor(9.0), 1000)
        other.load_state_dict(made.state_dict())
        assert torch.equal(other.coef, made.coef)
        for one in (made, other):
            one.update(torch.tensor(kl), 1000)
        assert torch.equal(other.coef, made.coef) and torch.equal(other.integral, made.integral)


def test_a_resumed_run_has_the_fixed_coefficient_of_its_own_settings():
    device = torch.device("cpu")
    before, now = FixedKLCoefficient(device, coef=0.03), FixedKLCoefficient(device, coef=0.3)
    now.load_state_dict(before.state_dict())
    assert now.coef.item() == pytest.approx(0.3)
    now.load_state_dict(adaptive(coef=0.7).state_dict())
    assert now.coef.item() == pytest.approx(0.3)
    steered = adaptive(coef=0.7)
    steered.load_state_dict(before.state_dict())
    assert steered.coef.item() == steered.integral.item() == pytest.approx(0.7)


@pytest.mark.parametrize("name", ["rloo", "grpo"])
def test_one_sample_can_not_be_compared(name):
    samples = range_of("samples_per_prompt", read_file(CONF / f"algo/advantage/{name}.yaml"))
    assert 1 not in samples and 2 in samples
