"""A randomised test of a mailing, from a file to values and scores, on made-up customers with known effects."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass

import pytest
import torch
from hydra.utils import instantiate
from scipy import stats

from configs import composed
from envs.ab_test.analysis import Analyst
from envs.ab_test.arms_report import arms_table, few_lines, ratio_of_sizes
from envs.ab_test.differences_report import differences, differences_table
from envs.ab_test.report import tables
from envs.ab_test.trial_table import TrialTable
from rlcore.ope.outcome_models import Linear
from rlcore.uplift.mean_differences import difference_of_shares
from rlcore.uplift.meta_learners import T
from script_runner import run

pytest.importorskip("pyarrow")  # of the extra `logs`

COST, WORTH = 0.5, 10.0


@dataclass
class MadeUp:
    """A made-up test: mail helps customers who like it, and harms the others if `effect` says so."""

    path: str
    likes: torch.Tensor
    gain: float  # true profit a customer of treating whom it pays, over the best single arm


def write(folder, *, n=8000, effect=0.1, seed=0, columns=None) -> MadeUp:
    g = torch.Generator().manual_seed(seed)
    likes = torch.randint(2, (n,), generator=g)
    age = torch.randn(n, generator=g)
    mail = torch.rand(n, generator=g) < 0.6
    chance = 0.15 + effect * torch.where(likes == 1, 1.0, -1.0) * mail
    bought = torch.rand(n, generator=g) < chance
    path = folder / "test.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["who", "arm", "likes", "age", "bought"])
        for k in range(n):
            writer.writerow([f"c{k}", "mail" if mail[k] else "none", int(likes[k]), f"{age[k]:.4f}", int(bought[k])])
    # mail to all earns −COST a customer on average: the best single arm is none
    return MadeUp(str(path), likes, 0.5 * (WORTH * effect - COST))


def table(path, **changes):
    settings = {
        "separator": ",",
        "id": "who",
        "unit": None,
        "treatment": "arm",
        "control": "none",
        "outcomes": ["bought"],
        "propensity": None,
        "text": [],
        "ignore": [],
        "min_level_count": 10,
    }
    return TrialTable(path=path, **{**settings, **changes})


def analyst(**changes):
    learner = T(model=Linear(ridge=30.0, own=True, scaled=False))
    settings = {
        "outcome": None,
        "worth": {"bought": WORTH},
        "cost": COST,
        "costs": {},
        "learners": {"T": learner},
        "binary": [],
        "model": Linear(ridge=30.0, own=True, scaled=False),
        "folds": 2,
        "standard_errors": 0.0,
        "level": 0.95,
        "replications": 20,
        "bins": 5,
    }
    return Analyst(**{**settings, **changes})


@pytest.mark.long
def test_values_of_single_arms_are_their_means_and_the_gain_is_the_true_one(tmp_path):
    made = write(tmp_path)
    trial = table(made.path).read()
    analysis = analyst()(trial, 0)
    for k, name in enumerate(trial.arms):
        mean = analysis.profit[trial.arm == k].mean().item()
        assert analysis.policies[name].ips[0] == pytest.approx(mean, abs=1e-9)
        assert analysis.policies[name].snips[0] == pytest.approx(mean, abs=1e-9)
        value, low, high = analysis.policies[name].dr
        assert abs(value - mean) < (high - low) / 4 / 1.96  # half a standard error
    value, low, high = analysis.over_best["by bought"]
    assert low < made.gain < high
    assert low > 0


def test_treating_whom_it_pays_is_treating_those_who_like_it(tmp_path):
    made = write(tmp_path)
    analysis = analyst()(table(made.path).read(), 0)
    for half in analysis.halves:
        treated = half.targets["by bought"].argmax(1)
        assert (treated == made.likes[half.rows]).double().mean() > 0.99


def households(folder, *, n=600, size=4):
    """A test whose households were drawn as a whole, and whose customers buy as their household does."""
    g = torch.Generator().manual_seed(0)
    house = torch.arange(n) // size
    count = n // size
    mail = (torch.rand(count, generator=g) < 0.5)[house]
    bought = (torch.rand(count, generator=g) < 0.3)[house]
    age = torch.randn(count, generator=g)[house]
    path = folder / "houses.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["house", "arm", "age", "bought"])
        for k in range(n):
            writer.writerow([f"h{house[k]}", "mail" if mail[k] else "none", f"{age[k]:.4f}", int(bought[k])])
    return str(path)


def test_customers_of_a_unit_stay_in_one_half_and_count_once(tmp_path):
    """Four customers who do the same are as one: all intervals are twice as wide as those of customers alone."""
    path = households(tmp_path)
    found = {}
    for unit, ignored in (("house", []), (None, ["house"])):
        trial = table(path, id=None, unit=unit, ignore=ignored).read()
        analysis = analyst(worth={"bought": 1.0}, cost=0.0)(trial, 0)
        arms = arms_table(analysis, 0.95, {})
        difference = differences(analysis, 0.95)["mail, bought"]["difference"]
        over_none = analysis.over_none["mail"]
        balance = arms.rows["mail"]["p_of_balance"]
        found[unit] = (arms.rows["mail"]["bought"][1], difference[2] - difference[1], over_none[2] - over_none[1])
        if unit:
            first, second = (set(trial.unit[half.rows].tolist()) for half in analysis.halves)
            assert not first & second and len(first) == len(second) == 75
            assert arms.rows["mail"]["units"] + arms.rows["none"]["units"] == 150
            assert balance > 0.01
    for by_house, alone in zip(found["house"], found[None]):
        assert by_house / alone == pytest.approx(2.0, rel=0.05)


def test_every_arm_less_the_control_is_in_the_table_with_adjusted_p_values(tmp_path):
    trial = table(write(tmp_path).path).read()
    trial = trial._replace(outcomes={**trial.outcomes, "age": trial.features[:, 1].double()})
    analysis = analyst()(trial, 0)
    report = differences_table(analysis, 0.95)
    assert list(report.rows) == ["mail, bought", "mail, age", "mail, profit"]
    mail = trial.arm == 1
    bought = difference_of_shares(trial.outcomes["bought"][mail], trial.outcomes["bought"][~mail], 0.95)
    assert (
        report.rows["mail, bought"]["difference"] == list(bought[:3]) and report.rows["mail, bought"]["p"] == bought.p
    )
    for outcome, x in {"age": trial.outcomes["age"], "profit": analysis.profit}.items():
        reference = stats.ttest_ind(x[mail], x[~mail], equal_var=False)
        interval = reference.confidence_interval(0.95)
        row = report.rows[f"mail, {outcome}"]
        assert row["difference"][1:] == pytest.approx([interval.low, interval.high], rel=1e-6)
        assert row["p"] == pytest.approx(reference.pvalue, rel=1e-6)
    for row in report.rows.values():
        assert row["p"] <= row["p_holm"] <= 3 * row["p"]
    assert "adjusted for all 3 differences" in report.caption


def test_an_arm_of_few_buyers_is_named_with_their_number(tmp_path):
    made = write(tmp_path, n=400)
    trial = table(made.path).read()
    bought, none = trial.outcomes["bought"].clone(), trial.arm == 0
    bought[none & (bought == 0)] = 1.0
    bought[none.nonzero()[:29, 0]] = 0.0
    few = trial._replace(outcomes={"bought": bought, "spend": 9.5 * (torch.arange(400) % 40 == 3).double()})
    spending = [int((few.outcomes["spend"][trial.arm == k] > 0).sum()) for k in range(2)]
    assert few_lines(few) == [
        f"warning: '{arm}' has {count} customers with '{outcome}' other than {usual}, fewer than 30: intervals that "
        "rest on so few are unsure"
        for arm, count, outcome, usual in (
            ("none", 29, "bought", 1),
            ("none", spending[0], "spend", 0),
            ("mail", spending[1], "spend", 0),
        )
    ]
    in_pairs = few._replace(unit=torch.arange(400) // 2)
    assert "has 29 customers" not in few_lines(in_pairs)[0] and "units with 'bought'" in few_lines(in_pairs)[0]


def test_an_arm_of_one_unit_is_refused(tmp_path):
    path = households(tmp_path)
    lines = [line.replace("mail", "none") for line in open(path)]
    lines[1:5] = [line.replace("none", "mail") for line in lines[1:5]]
    with open(path, "w") as file:
        file.writelines(lines)
    with pytest.raises(ValueError, match="houses.csv: column 'house': expected two or more in each arm, got 1 in 'mai"):
        table(path, id=None, unit="house").read()


def test_without_effects_no_policy_is_said_to_be_better(tmp_path):
    analysis = analyst()(table(write(tmp_path, effect=0.0).path).read(), 0)
    assert analysis.over_best["by bought"][1] <= 0


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"treatment": None}, "table.treatment: expected the name of the column"),
        ({"treatment": "armm"}, "no column 'armm'; there are who, arm, likes, age, bought"),
        ({"control": "nothing"}, "table.control: expected the arm of 'arm' that got nothing, one of mail, none"),
        ({"outcomes": []}, "table.outcomes: expected the columns"),
        ({"treatment": "age"}, "expected 2 to 50 arms, got"),
        ({"propensity": "likes"}, "row [23], column 'likes': expected a probability between 0 and 1"),
        ({"ignore": ["likes", "age"]}, "expected columns of what was known before the mailing, got none"),
    ],
)
def test_what_is_no_test_is_refused_in_one_line(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        table(write(tmp_path, n=60).path, **changes).read()


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda rows: rows[7].__setitem__(0, "c2"),
            "row 9, column 'who': id 'c2' is that of row 4 too",
        ),
        (lambda rows: rows[3].__setitem__(0, ""), "row 5, column 'who': expected an id, got nothing"),
    ],
)
def test_an_id_that_is_no_customers_own_is_refused(tmp_path, change, message):
    made = write(tmp_path, n=60)
    header, *rows = list(csv.reader(open(made.path)))
    change(rows)
    with open(made.path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    with pytest.raises(ValueError, match=message):
        table(made.path).read()


def test_a_probability_that_depends_on_the_customer_is_refused(tmp_path):
    made = write(tmp_path, n=60)
    header, *rows = list(csv.reader(open(made.path)))
    with_share = [[*row, "0.6" if row[1] == "mail" else "0.4"] for row in rows]
    for last in ("0.6", "0.7"):
        with_share[-1][1], with_share[-1][5] = "mail", last
        with open(made.path, "w", newline="") as file:
            csv.writer(file).writerows([[*header, "share"], *with_share])
        if last == "0.6":
            assert table(made.path, propensity="share").read().propensity[-1] == 0.6
    with pytest.raises(ValueError, match="row 61, column 'share': expected one probability an arm"):
        table(made.path, propensity="share").read()
    with open(made.path, "w", newline="") as file:
        csv.writer(file).writerows([[*header, "share"], *([*row, "0.6"] for row in rows)])
    with pytest.raises(ValueError, match="column 'share': expected the probability of each customer's own arm; the"):
        table(made.path, propensity="share").read()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"costs": {"none": 1.0}}, "costs: expected one of mail, got 'none'"),
        ({"outcome": "buys"}, "outcome: expected one of bought, got 'buys'"),
    ],
)
def test_settings_that_the_test_has_not_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        analyst(**changes)(table(write(tmp_path, n=60).path).read(), 0)


@pytest.mark.parametrize("shares", [{"mial": 0.5, "none": 0.5}, {"mail": 0.6}])
def test_shares_of_other_arms_are_refused(tmp_path, shares):
    trial = table(write(tmp_path, n=60).path).read()
    with pytest.raises(ValueError, match="shares: expected a share of each arm, none, mail; got"):
        ratio_of_sizes(trial.arms, trial.arm, shares)


def test_a_customer_without_an_outcome_is_refused_by_row(tmp_path):
    made = write(tmp_path, n=60)
    lines = (tmp_path / "test.csv").read_text().splitlines()
    lines[5] = lines[5][:-1]
    (tmp_path / "test.csv").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="row 6, column 'bought': expected a number, got nothing"):
        table(made.path).read()


def test_the_script_writes_tables_plots_and_a_score_for_every_customer(tmp_path):
    made = write(tmp_path, n=1200)
    done = run(
        tmp_path,
        "uplift",
        f"data={made.path}",
        "table.id=who",
        "table.treatment=arm",
        "table.control=none",
        "table.outcomes=[bought]",
        f"+ab_test.worth.bought={WORTH}",
        f"ab_test.cost={COST}",
        "ab_test.folds=2",
        "ab_test.replications=10",
        "ab_test.learners.T_network.model.steps=5",
        "ab_test.learners.X_network.model.steps=5",
        "hydra.run.dir=out",
    )
    assert done.returncode == 0, done.stderr
    assert "than the best single arm" in done.stdout
    with open(tmp_path / "out" / "scores.csv", newline="") as file:
        scores = list(csv.DictReader(file))
    assert [row["customer"] for row in scores] == [f"c{k}" for k in range(1200)]
    assert {row["pays"] for row in scores} <= {"mail", "none"}
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(found) == {"outcome", "arms", "differences", "ranking", "policies"}
    assert {"policies.png", "qini_1.png", "uplift_1.png"} <= {path.name for path in (tmp_path / "out").iterdir()}


@pytest.mark.slow
def test_the_shipped_settings_are_those_of_an_analyst():
    shipped = instantiate(composed(name="uplift").ab_test, _convert_="all")
    assert isinstance(shipped, Analyst)
    assert set(shipped.binary) < set(shipped.learners)


@pytest.mark.parametrize("replies", [[0], [0, 1, 2, 3, 4, 5]])
def test_a_mailing_with_hardly_a_reply_is_analysed(tmp_path, replies):
    made = write(tmp_path, n=400)
    with open(made.path, newline="") as file:
        rows = list(csv.reader(file))
    bought = {k + 1 for k in replies}
    with open(made.path, "w", newline="") as file:
        csv.writer(file).writerows([rows[0], *([*row[:-1], int(k in bought)] for k, row in enumerate(rows[1:], 1))])
    many = analyst(folds=5)
    analysis = many(table(made.path).read(), 0)
    shown = tables(analysis, many.level, many.replications, many.bins, {}, 0)
    arms = shown["arms"].rows
    assert sum(row["customers"] for row in arms.values()) == 400
    assert set(shown) == {"arms", "differences", "ranking", "policies"}
    assert all(report.to_table() for report in shown.values())
