"""Two rules that decided in one log, compared by their own decisions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy import stats

from rlcore.offline.logged_dataset import LoggedDataset
from rlcore.ope.logged_rules import compare_rules


def log(unit, policy, reward):
    """A log of decisions of one step by the rules a, b and c, whose cost is a tenth of the reward's square."""
    n = len(unit)
    dataset = LoggedDataset.from_obp(
        {"n_rounds": n, "n_actions": 2, "context": [[0.0]] * n, "action": [0] * n, "reward": reward.tolist()}
    )
    cost = (0.1 * reward.square()).float()
    return replace(dataset, unit=unit, policy=policy, policies=("a", "b", "c"), cost=cost, price=torch.full((n,), 2.0))


def test_rules_of_different_units_are_compared_as_two_samples():
    generator = torch.Generator().manual_seed(0)
    reward = torch.randn(300, generator=generator)
    unit, policy = torch.arange(300), torch.arange(300) % 3
    dataset = log(unit, policy, reward)
    report = compare_rules(dataset, ["b", "a"], 0.9)
    for kind, x in {"reward": dataset.reward, "cost": dataset.cost, "net": dataset.net_reward}.items():
        reference = stats.ttest_ind(x[policy == 1].double(), x[policy == 0].double(), equal_var=False)
        interval = reference.confidence_interval(0.9)
        row = report.rows["b less a"]
        assert row[f"{kind}_ci"] == pytest.approx([interval.low, interval.high], rel=1e-5)
        assert row[f"{kind}_p"] == pytest.approx(reference.pvalue, rel=1e-5)
    assert report.rows["b"]["decisions"] == 100 and report.rows["b"]["units"] == 100


def test_rules_of_the_same_units_are_compared_in_pairs_and_the_better_is_said_to_be():
    generator = torch.Generator().manual_seed(1)
    of_unit = 10 * torch.randn(80, generator=generator)
    unit, policy = torch.arange(80).repeat_interleave(2), torch.arange(160) % 2
    reward = of_unit[unit] + 0.5 * policy + 0.1 * torch.randn(160, generator=generator)
    dataset = replace(log(unit, policy, reward), cost=torch.zeros(160))
    found = compare_rules(dataset, ["b", "a"], 0.95)
    low, high = found.rows["b less a"]["reward_ci"]
    assert low < 0.5 < high and high - low < 0.1
    assert found.extra["verdicts"][0].startswith("b was better than a by reward (+0.")
    (other,) = compare_rules(dataset, ["a", "b"], 0.95).extra["verdicts"]  # without a cost, net is the reward
    assert other.startswith("a was worse than b by reward (-0.")
    priced = replace(dataset, cost=torch.ones(160), price=torch.ones(160))
    other = compare_rules(priced, ["a", "b"], 0.95).extra["verdicts"][1]
    assert other.startswith("a was worse than b by net (-0.")
    shuffled = replace(dataset, unit=torch.arange(160))  # each decision alone: the units' spread drowns the difference
    assert (
        "b was no better than a by reward, as far as this log can tell"
        in compare_rules(shuffled, ["b", "a"], 0.95).caption
    )


def ramp(seed, customers=60, effect=0.5):
    """Weeks of a rising season in which rule b takes ever more customers from a; customers stay who they are."""
    generator = torch.Generator().manual_seed(seed)
    share, season = torch.tensor([0.2, 0.5, 0.8]), torch.tensor([0.0, 3.0, 6.0])
    unit, week = torch.arange(customers).repeat(3), torch.arange(3).repeat_interleave(customers)
    turn = torch.rand(customers, generator=generator)
    policy = (turn[unit] < share[week]).long()
    noise = 0.5 * torch.randn(customers, generator=generator)[unit] + torch.randn(3 * customers, generator=generator)
    return replace(log(unit, policy, season[week] + effect * policy + noise), step=week, cost=torch.zeros(len(unit)))


def test_a_share_that_changes_from_week_to_week_does_not_confound():
    dataset = ramp(0, customers=400)
    found = compare_rules(dataset, ["b", "a"], 0.95)
    low, high = found.rows["b less a"]["reward_ci"]
    assert low < 0.5 < high < 1
    assert found.rows["b"]["reward"] - found.rows["a"]["reward"] == pytest.approx(found.rows["b less a"]["reward"])
    flat = compare_rules(replace(dataset, step=torch.zeros(1200).long()), ["b", "a"], 0.95)  # as if in one week
    assert flat.rows["b less a"]["reward_ci"][0] > 1.5
    by_week = []
    for k in range(3):
        x, by = dataset.reward[dataset.step == k], dataset.policy[dataset.step == k]
        by_week.append((x[by == 1].mean() - x[by == 0].mean()).item())
    assert found.rows["b less a"]["reward"] == pytest.approx(sum(by_week) / 3, rel=1e-4)


@pytest.mark.long
def test_intervals_over_weeks_hold():
    holds = 0
    for seed in range(200):
        low, high = compare_rules(ramp(seed), ["b", "a"], 0.9).rows["b less a"]["reward_ci"]
        holds += low <= 0.5 <= high
    assert holds / 200 == pytest.approx(0.9, abs=0.05)


def test_weeks_of_one_rule_are_left_out_and_larger_weeks_weigh_more():
    week = torch.tensor([0] * 6 + [1] * 4 + [2] * 5 + [3] * 3)
    policy = torch.tensor([0, 0, 0, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0])  # b has none in 2, a has one in 3
    reward = torch.arange(18.0)
    dataset = replace(log(torch.arange(18), policy, reward), step=week)
    found = compare_rules(dataset, ["b", "a"], 0.95)
    assert found.rows["b less a"]["reward"] == pytest.approx((6 * (4 - 1) + 4 * (8.5 - 6.5)) / 10)
    assert found.rows["b"]["decisions"] == found.rows["a"]["decisions"] == 5
    assert found.caption.endswith("2 of 4 steps: those with both rules, each by its number of decisions")
    with pytest.raises(
        ValueError, match="expected a step in which b and a each decided for two units or more, got none"
    ):
        compare_rules(dataset[week > 1], ["b", "a"], 0.95)


@pytest.mark.parametrize(
    "rules, message",
    [
        (["a"], "rules: expected two rules, as in rules=.a,b., got 1"),
        (["a", "d"], "rules: expected two of a, b, c, got 'd'"),
        (["a", "c"], "rules: expected 'c' to have decided for two units or more, got 0"),
    ],
)
def test_what_is_no_comparison_is_refused(rules, message):
    unit = torch.arange(6)
    with pytest.raises(ValueError, match=message):
        compare_rules(log(unit, unit % 2, torch.ones(6)), rules, 0.95)


def of_two_rules(seed, *, effect, correlation, units=400, steps=3):
    """Units of two rules; what a unit brings a step is related to what it brought before, with this correlation."""
    generator = torch.Generator().manual_seed(seed)
    before, noise = torch.randn(2, units, generator=generator, dtype=torch.float64)
    of_unit = 2 * (correlation * before + (1 - correlation**2) ** 0.5 * noise)
    unit, step = torch.arange(units).repeat(steps), torch.arange(steps).repeat_interleave(units)
    policy = (torch.rand(units, generator=generator) < 0.3).long()[unit]
    reward = of_unit[unit] + step + effect * policy
    dataset = replace(log(unit, policy, reward.float()), step=step, cost=torch.zeros(len(unit)))
    return dataset, before[unit]


def test_the_adjusted_difference_is_that_of_a_regression_on_what_units_brought_before():
    dataset, before = of_two_rules(0, effect=0.3, correlation=0.9)
    before[dataset.unit == 5] = torch.nan  # a unit that was not there before counts as an average one
    found = compare_rules(dataset, ["b", "a"], 0.95, before)
    row, plain = found.rows["b less a, adjusted"], found.rows["b less a"]
    filled = torch.where(before.isnan(), before.nanmean(), before)
    columns = torch.stack([torch.ones(1200), dataset.policy, dataset.step == 1, dataset.step == 2], 1).double()
    reference = torch.linalg.lstsq(torch.cat((columns, filled[:, None]), 1), dataset.reward.double()).solution[1]
    assert row["reward"] == pytest.approx(reference.item(), abs=0.01)
    low, high = row["reward_ci"]
    wide = plain["reward_ci"][1] - plain["reward_ci"][0]
    assert low < 0.3 < high and high - low == pytest.approx(wide * (1 - 0.9**2) ** 0.5, rel=0.1)
    assert f"({row['reward']:+.4g}" in found.extra["verdicts"][0]


@pytest.mark.parametrize("slopes", [(1.6, 1.6), (0.6, 3.0), (1.0, 1.5)])
def test_intervals_of_the_adjusted_difference_hold_for_new_units(slopes):
    """Every test draws its units anew; the slopes of what they bring on what they brought are those of the rules."""
    held, n = 0, 120
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        before, noise = torch.randn(2, n, generator=generator, dtype=torch.float64)
        policy = (torch.arange(n) % 3 == 0).long()
        reward = torch.tensor(slopes, dtype=torch.float64)[policy] * before + 0.1 * policy + 0.5 * noise
        dataset = replace(log(torch.arange(n), policy, reward.float()), cost=torch.zeros(n))
        low, high = compare_rules(dataset, ["b", "a"], 0.95, before).rows["b less a, adjusted"]["reward_ci"]
        held += low < 0.1 < high
    assert 183 <= held <= 197  # 190 ± 2.3 standard errors


def test_the_adjusted_interval_has_the_variance_of_the_mean_of_what_units_brought():
    """By numpy: residuals of each rule's least squares, and (β₁ − β₂)² times the variance of the mean of all."""
    generator = torch.Generator().manual_seed(5)
    before, noise = torch.randn(2, 1000, generator=generator, dtype=torch.float64)
    policy = (torch.arange(1000) % 4 == 0).long()
    reward = (torch.tensor([0.5, 2.0])[policy] * before + noise).float()
    dataset = replace(log(torch.arange(1000), policy, reward), cost=torch.zeros(1000))
    row = compare_rules(dataset, ["b", "a"], 0.95, before).rows["b less a, adjusted"]
    x, y, is_b = before.numpy(), reward.double().numpy(), policy.numpy() == 1
    fits = [stats.linregress(x[of_rule], y[of_rule]) for of_rule in (is_b, ~is_b)]
    variance = (fits[0].slope - fits[1].slope) ** 2 * x.var(ddof=1) / 1000
    for fit, of_rule in zip(fits, (is_b, ~is_b)):
        variance += (y[of_rule] - fit.slope * x[of_rule]).var(ddof=1) / of_rule.sum()
    low, high = row["reward_ci"]
    assert (high - low) / 2 == pytest.approx(1.96 * variance**0.5, rel=0.01)


def test_nothing_is_adjusted_where_units_were_alike_before():
    dataset, before = of_two_rules(0, effect=0.3, correlation=0.5)
    for unknown in (torch.zeros_like(before), torch.full_like(before, torch.nan)):
        found = compare_rules(dataset, ["b", "a"], 0.95, unknown)
        assert list(found.rows) == ["b", "a", "b less a"]
        assert found.rows == compare_rules(dataset, ["b", "a"], 0.95).rows


def alike_but_for_rounding(n, value):
    """n sums of ten tenths of a value, added up in two orders, which round to two numbers."""
    return torch.tensor([sum([value / 10] * 10) if k % 2 else value for k in range(n)], dtype=torch.float64)


@pytest.mark.parametrize("constant", [0.0, 0.7, 70007.0])
def test_a_rule_whose_units_were_alike_but_for_rounding_has_no_slope(constant):
    """The other rule's slope is that of its own least squares, and its units' mean is taken at the mean of all."""
    generator = torch.Generator().manual_seed(0)
    policy = torch.arange(400) % 2
    of_b = 5 * torch.rand(200, generator=generator, dtype=torch.float64)
    before = torch.zeros(400, dtype=torch.float64)
    before[policy == 0], before[policy == 1] = alike_but_for_rounding(200, constant), of_b + constant
    reward = torch.randn(400, generator=generator, dtype=torch.float64) + 0.5 * before.clamp_max(10)
    dataset = replace(log(torch.arange(400), policy, reward.float()), cost=torch.zeros(400))
    x, y = before.numpy(), dataset.reward.double().numpy()
    is_b = (policy == 1).numpy()
    slope = stats.linregress(x[is_b], y[is_b]).slope
    expected = y[is_b].mean() - slope * (x[is_b].mean() - x.mean()) - y[~is_b].mean()
    found = compare_rules(dataset, ["b", "a"], 0.95, before)
    assert found.rows["b less a, adjusted"]["reward"] == pytest.approx(expected, rel=1e-6)


def test_nothing_is_adjusted_where_all_units_were_alike_but_for_rounding():
    dataset, before = of_two_rules(0, effect=0.3, correlation=0.5)
    found = compare_rules(dataset, ["b", "a"], 0.95, alike_but_for_rounding(len(before), 0.7)[dataset.unit])
    assert list(found.rows) == ["b", "a", "b less a"]


@pytest.mark.parametrize("known", [0, 1])
def test_rules_with_too_few_units_known_before_are_compared_and_not_called_alike(known):
    dataset, before = of_two_rules(0, effect=1.0, correlation=0.5)
    of_b = dataset.unit[dataset.policy == 1].unique()
    before[torch.isin(dataset.unit, of_b[known:])] = torch.nan
    caption = compare_rules(dataset, ["b", "a"], 0.95, before).caption
    assert "before any of these decisions" not in caption and caption.startswith("b was better than a")


def test_rules_of_unequal_size_and_slope_lose_the_spread_of_before_but_for_that_of_its_mean():
    """One slope for both rules would leave more of it to the smaller one (Freedman 2008)."""
    generator = torch.Generator().manual_seed(0)
    before, noise = torch.randn(2, 4000, generator=generator, dtype=torch.float64)
    policy = (torch.arange(4000) % 20 == 0).long()  # a twentieth
    reward = torch.where(policy == 1, 0.2, 1.0) * 3 * before + 0.5 * noise
    dataset = replace(log(torch.arange(4000), policy, reward.float()), cost=torch.zeros(4000))
    low, high = compare_rules(dataset, ["b", "a"], 0.95, before).rows["b less a, adjusted"]["reward_ci"]
    error = (0.5**2 * (1 / 200 + 1 / 3800) + (3 - 0.6) ** 2 / 4000) ** 0.5
    assert low < 0 < high and high - low == pytest.approx(2 * 1.97 * error, rel=0.1)


def test_power_is_that_of_the_normal_approximation_and_small_or_unlike_rules_are_named():
    dataset, before = of_two_rules(3, effect=0.0, correlation=0.5, units=60)
    found = compare_rules(dataset, ["b", "a"], 0.95, before)
    low, high = found.rows["b less a, adjusted"]["net_ci"]
    said = f"80 of 100 such tests would find a difference of {1.4296 * (high - low) / 2:.3g}"
    assert said in found.caption and "fewer than 30" in found.caption
    unlike = before + 2 * dataset.policy
    assert "(p = " in found.caption and float(found.caption.split("(p = ")[1].split(")")[0]) > 0.05
    shifted = compare_rules(dataset, ["b", "a"], 0.95, unlike).caption
    assert float(shifted.split("(p = ")[1].split(")")[0]) < 1e-6
