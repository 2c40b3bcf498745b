"""Logged decisions: files that read back as written, rows that are refused by name, exact propensities."""

from __future__ import annotations

import gzip
from dataclasses import fields, replace

import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from envs.data_collection import UniformPolicy, rollouts
from envs.offers.logs.schema import COLUMNS
from envs.offers.planning.dynamic_program import action_values, best_plan, no_contact_values
from envs.offers.planning.knapsack import Increments
from envs.offers.planning.state_values import VisitedStates
from envs.offers.policies.logging_policies import at_private_prices
from envs.wheel_bandit import Wheel
from rlcore.offline import log_header
from rlcore.offline.log_files import Reader, read_log, write_log
from rlcore.offline.logged_dataset import LoggedDataset, check_rows
from small_offers import logging_policy, offers_env

CPU = torch.device("cpu")
OPTIONS = {"decisions": 1, "steps": 4, "all_propensities": True}


def made(agents=60, name="uniform", policy=None, **changes) -> LoggedDataset:
    """A log by a logging policy with some of its keys replaced, in an environment likewise."""
    (log,) = rollouts(offers_env(agents, **changes), logging_policy(name, **(policy or {})), name, 3, **OPTIONS)
    return log


def same(a: LoggedDataset, b: LoggedDataset) -> None:
    assert (a.nvec, a.static_dim, a.policies) == (b.nvec, b.static_dim, b.policies)
    pairs = {f.name: (getattr(a, f.name), getattr(b, f.name)) for f in fields(LoggedDataset)}
    pairs |= {name: (x, b.outcomes[name]) for name, x in a.outcomes.items()}
    assert a.outcomes.keys() == b.outcomes.keys()
    del pairs["outcomes"], pairs["unit_names"]  # a CSV's cells are texts, and so are its units' names
    assert a.names_of_units(a.unit.unique()) == b.names_of_units(b.unit.unique())
    for name, (x, y) in pairs.items():
        if isinstance(x, Tensor):
            torch.testing.assert_close(x, y, rtol=1e-6, atol=0, equal_nan=True, msg=name)
        else:
            assert x == y


# ── what is logged ──────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_season_is_logged_as_it_came():
    log = made(name="uniform")
    assert len(log) == 60 * 12 and torch.equal(log.step, torch.arange(12).repeat(60))
    assert torch.equal(log.unit, torch.arange(60).repeat_interleave(12)) and not log.episode.any()
    assert torch.equal(log.terminated, log.step == 11) and not log.truncated.any()
    torch.testing.assert_close(log.next_obs[log.step < 11], log.obs[log.step > 0])
    assert torch.equal(log.next_action_mask[log.step < 11], log.action_mask[log.step > 0])
    torch.testing.assert_close(log.propensity, 1 / log.action_mask.sum(1).double())
    env = offers_env()
    env.reset()
    cost, value = env.world.catalogue.cost, env.world.catalogue.value
    offer, channel = log.action // 5, log.action % 5
    torch.testing.assert_close(log.cost, cost[channel] * (offer > 0) + value[offer] * log.outcomes["redeemed"])
    assert (
        set(log.outcomes["trips"].unique().tolist()) == {0.0, 1.0}
        and (log.outcomes["redeemed"] <= log.outcomes["trips"]).all()
    )
    margin = (env.customers.margin + 0.5)[log.unit]
    torch.testing.assert_close(log.reward, margin * log.outcomes["trips"] - log.cost)
    torch.testing.assert_close(log.terminal_value, torch.where(log.terminated, log.terminal_value, 0.0))
    assert (log.terminal_value[log.terminated] >= -1e-4).all() and log.terminal_value.sum() > 0


def test_seasons_are_of_new_customers_and_other_environments_go_on():
    first, second = rollouts(offers_env(), UniformPolicy(), "uniform", 0, **{**OPTIONS, "decisions": 60 * 12 + 1})
    assert not set(first.unit.tolist()) & set(second.unit.tolist()) and (second.episode == 1).all()
    assert second.row[0] == 60 * 12 + 2  # of the file that both are written to
    env = Wheel(CPU, 0, num_agents=8, delta=0.9, safe=0.12, plain=0.1, prize=1.0, noise=0.05)
    log = LoggedDataset.cat(list(rollouts(env, UniformPolicy(), "uniform", 0, **{**OPTIONS, "decisions": 64})))
    assert len(log) == 64 and log.unit.unique().numel() == 8
    assert torch.equal(log.episode[log.unit == 3], torch.arange(8)) and not log.step.any()


@pytest.mark.parametrize(
    ("name", "policy"),
    [("uniform", {}), ("uplift", {}), ("uplift", {"uplift": False}), ("price_perturbed", {}), ("confounded", {})],
)
def test_actions_follow_their_propensities(name, policy):
    log = made(800, name, policy, price_range=[1.0, 8.0])
    if name == "confounded":
        assert log.propensity.isnan().all() and log.probs is None
        return
    torch.testing.assert_close(log.probs.sum(1), torch.ones(len(log)))
    assert not log.probs[~log.action_mask].any()
    torch.testing.assert_close(
        log.probs.double().gather(1, log.action[:, None])[:, 0], log.propensity, rtol=1e-6, atol=0
    )
    # How often each pair came, beside how often it had to: a martingale, its variance is Σ p(1 − p).
    p = log.probs.double()
    z = (torch.nn.functional.one_hot(log.action, 30) - p).sum(0) / (p * (1 - p)).sum(0).sqrt().clamp_min(1e-9)
    assert z.abs().max() < 4.0, z
    check_rows(log, "log")


def test_a_confounded_log_tells_what_holds_on_average_alone():
    (log,) = rollouts(
        offers_env(4000), logging_policy("confounded", reported_propensities="average"), "confounded", 0, **OPTIONS
    )
    contacted, able = (log.action > 0).double(), log.action_mask[:, 1:].any(1)
    share = 1 - log.probs[:, 0].double()
    assert abs((contacted - share)[able].mean()) < 0.02
    assert abs((contacted - share)[able & (log.outcomes["trips"] > 0)].mean()) > 0.1


@pytest.mark.long
# ── private prices ──────────────────────────────────────────────────────────────────────────────────────────────────
def test_private_price_propensities_are_what_the_planner_does_at_drawn_prices():
    env, planner = offers_env(12, price_range=[1.0, 6.0]), logging_policy("price_perturbed", epsilon=0.0)
    env.reset()
    planner.reset(env)
    for week in range(2):
        probs = planner.probs(env, None, env.options.action_mask)
        torch.testing.assert_close(probs.sum(1), torch.ones(12, dtype=probs.dtype))
        c, world = env.customers, env.world
        values = best_plan(c, world, no_contact_values(c, world), env.prices)[0]
        noise = torch.randn(1500, generator=torch.Generator().manual_seed(week))
        counts = torch.zeros(12, 30)
        for xi in noise:  # the planner itself, at each customer's own draw
            price = env.price * (0.5 * xi).exp()
            nothing, contact = action_values(c, world, week, VisitedStates(env.state, c.alpha), price, values[week + 1])
            table = (
                torch.cat((nothing.expand(1, 5, -1), contact))
                .flatten(0, 1)
                .T.masked_fill(~env.options.action_mask, -torch.inf)
            )
            counts[torch.arange(12), table.argmax(1)] += 1
        assert ((counts / 1500 - probs).abs() < 4 * (probs * (1 - probs) / 1500).sqrt() + 1e-3).all()
        assert ((probs > 0.02) & (probs < 0.98)).any()
        env.step(torch.zeros(12, 2, dtype=torch.long))


def test_private_price_propensities_by_hand():
    steps = Increments(torch.tensor([[4.0, 1.0, -torch.inf]]), torch.ones(1, 3), torch.tensor([[7, 12, 0]]))
    probs = at_private_prices(steps, torch.tensor([2.0]), 0.5, 30)[0]
    high, low = norm.cdf(torch.tensor([2.0, 0.5]).double().log().numpy() / 0.5)
    assert probs[7].item() == pytest.approx(high - low) and probs[12].item() == pytest.approx(low)
    assert probs[0].item() == pytest.approx(1 - high) and probs.sum().item() == pytest.approx(1.0)


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_a_log_comes_back_as_it_went(ending, tmp_path):
    pytest.importorskip("pyarrow")
    log, path = made(), tmp_path / f"log.{ending}"
    assert write_log(path, [log[:100], log[100:]]) == len(log)
    same(read_log(path, COLUMNS), log)
    chunks = list(Reader(path, COLUMNS, rows=101))
    assert max(map(len, chunks)) <= 101 and sum(map(len, chunks)) == len(log)
    same(LoggedDataset.cat(chunks), log)
    plain = replace(log, probs=None, next_obs=None, next_action_mask=None, propensity=log.propensity * torch.nan)
    write_log(path, [plain])
    same(read_log(path, COLUMNS), plain)
    assert not list(tmp_path.glob(".*"))


def test_policies_of_several_logs_keep_their_names(tmp_path):
    pytest.importorskip("pyarrow")
    a, b = made(5), made(5, "price_perturbed")
    both = LoggedDataset.cat([a, b])
    assert both.policies == ("uniform", "price_perturbed") and both.policy.tolist() == [0] * 60 + [1] * 60
    write_log(tmp_path / "log.parquet", [a, b])
    same(read_log(tmp_path / "log.parquet", COLUMNS), replace(both, row=torch.arange(120) + 2))


def test_a_failed_write_leaves_what_was_there(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "log.parquet"
    write_log(path, [made(5)])
    before = path.read_bytes()

    def broken():
        yield made(5)
        raise ValueError("out of customers")

    with pytest.raises(ValueError, match="out of customers"):
        write_log(path, broken())
    with pytest.raises(ValueError, match="no decision"):
        write_log(path, [])
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


BAD = {
    "profit": ("profit", {3: "nan"}, "row 3, column 'profit': expected a number, got nan"),
    "text": ("spend", {2: "dear", 5: "x"}, "rows 2, 5, column 'spend': expected a number, got 'dear'"),
    "nothing": ("profit", {4: ""}, "row 4, column 'profit': expected a number, got nothing"),
    "zero": (
        "propensity",
        {2: "0.0", 3: "-0.1", 4: "1.5"},
        "rows 2, 3, 4, column 'propensity': expected a probability above 0",
    ),
    "many": ("propensity", {k: "2" for k in range(2, 20)}, "rows 2, 3, 4, 5, 6 and 13 more, column 'propensity'"),
    "heads": ("action_0", {2: "6"}, "row 2, column 'action_.': expected an action of .6, 5., got .6, 0."),
    "mask": ("action_1", {7: "4"}, "row 7, column 'action_.': expected a pair that valid_. allows"),
    "flag": ("valid_1_0", {9: "maybe"}, "row 9, column 'valid_1_0': expected true or false, got 'maybe'"),
    "observed": ("feature_2", {3: "nan", 9: "inf"}, "rows 3, 9, column 'feature_2': expected a number, got nan"),
    "state": ("state_1", {3: "1e39"}, "row 3, column 'state_1': expected a number, got inf"),
    "next state": ("next_state_0", {3: "nan"}, "row 3, column 'next_state_0': expected a number, got nan"),
    "money": ("spend", {3: "-5"}, "row 3, column 'spend': expected at least 0, got -5"),
    "before": ("week", {3: "-1"}, "row 3, column 'week': expected 0 to 2,147,483,647, got -1"),
    "after": ("week", {3: str(2**60)}, "row 3, column 'week': expected 0 to 2,147,483,647, got 1.15292e.18"),
    "nobody": ("customer", {3: "", 5: ""}, "rows 3, 5, column 'customer': expected a text or a number, got nothing"),
    "half": ("week", {3: "1.5"}, "row 3, column 'week': expected a whole number, got '1.5'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_named(case, tmp_path):
    pytest.importorskip("pyarrow")
    pd = pytest.importorskip("pandas")
    column, cells, message = BAD[case]
    log, path = made(5), tmp_path / "log.csv"
    log = replace(log, action=0 * log.action, probs=None)
    write_log(path, [log])
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    for row, text in cells.items():
        frame.loc[row - 2, column] = text
    frame.to_csv(path, index=False)
    with pytest.raises(ValueError, match=rf"log\.csv: {message}"):
        list(Reader(path, COLUMNS))


SMALL = """customer,action_0,profit,valid_0,valid_1,feature_0,feature_1
K7,1,2.5,1,1,-1,4
K9,0,1,1,1,3,5
"""


def test_a_log_may_be_named_in_capitals_compressed_and_written_by_pandas(tmp_path):
    pytest.importorskip("pyarrow")
    plain, gz = tmp_path / "LOG.CSV", tmp_path / "log.Csv.GZ"
    plain.write_text(SMALL)
    gz.write_bytes(gzip.compress(SMALL.encode()))
    pandas = tmp_path / "pandas.csv"
    pandas.write_text(SMALL.replace("K7,1,", "K7,1.0,").replace("K9,0,", "K9,0.0,"))
    expected = read_log(plain, COLUMNS)
    assert expected.action.tolist() == [1, 0] and expected.obs.tolist() == [[-1, 4], [3, 5]]
    for path in (gz, pandas):
        same(read_log(path, COLUMNS), expected)
    for name in ("log.txt", "log.csv.gz"):
        with pytest.raises(ValueError, match=rf"{name}: expected .* in \.?"):
            write_log(tmp_path / name, [expected])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SMALL.replace(",", ";"), "row 1: expected columns separated by commas, got semicolons: write"),
        (SMALL.replace("feature_1", "feature_2"), "no column 'feature_1', and there is 'feature_2': expected numbers"),
        (SMALL.replace("feature_1", "profit"), "column 'profit' comes twice"),
        (SMALL.replace("customer,", "customer, ", 1), "no column 'action_0'"),
    ],
)
def test_a_header_that_would_lose_a_column_is_refused(tmp_path, text, message):
    pytest.importorskip("pyarrow")
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_log(tmp_path / "log.csv", COLUMNS)


def test_parquet_s_own_faults_are_named(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"customer": [1, 2], "action_0": [1, 0], "profit": [1.0, 2.0], "valid_0": [1, 1], "valid_1": [1, 1]}
    path = tmp_path / "log.parquet"
    whole = pa.table({**columns, "feature_0": [0.5, 0.7]})
    for table, message in (
        (pa.Table.from_arrays([*whole.columns, whole["profit"]], [*whole.column_names, "profit"]), "'profit' comes tw"),
        (whole.set_column(0, "customer", pa.array([None, None], pa.string())), "rows 2, 3, column 'customer'"),
        (
            whole.append_column("week", pa.array([1, 2], pa.timestamp("s"))),
            "rows 2, 3, column 'week': expected a whole",
        ),
    ):
        parquet.write_table(table, path)
        with pytest.raises(ValueError, match=message):
            read_log(path, COLUMNS)


def test_a_flipped_byte_of_parquet_is_seen(tmp_path):
    """Each byte of the pages, without the footer, which has a check of its own: none changes a number unseen."""
    pytest.importorskip("pyarrow")
    path = tmp_path / "log.parquet"
    log = made(20)
    write_log(path, [log])
    whole = path.read_bytes()
    footer = int.from_bytes(whole[-8:-4], "little") + 8
    for place in range(4, len(whole) - footer, 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            found = read_log(path, COLUMNS)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        else:
            same(found, log)


def test_a_file_of_more_rows_than_memory_holds_is_refused_before_a_row_is_read(tmp_path, monkeypatch):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    n = 100_000
    columns = {"customer": 1, "action_0": 0, "profit": 1.0, "valid_0": 1, **{f"feature_{k}": 0.5 for k in range(9)}}
    path = tmp_path / "bomb.parquet"
    parquet.write_table(pa.table({name: [x] * n for name, x in columns.items()}), path)
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(log_header, "free_memory", lambda: 5 * n)
    monkeypatch.setattr(Reader, "__iter__", lambda _: pytest.fail("read"))
    with pytest.raises(ValueError, match=r"bomb.parquet: its 100,000 rows take 0\.0 GiB of memory, 0\.0 GiB are free"):
        read_log(path, COLUMNS)


def test_rows_of_a_later_chunk_are_counted_from_the_file_s_start(tmp_path):
    pytest.importorskip("pyarrow")
    log = made(50)
    log.reward[[300, 599]] = torch.nan
    write_log(tmp_path / "log.parquet", [log])
    with pytest.raises(ValueError, match="rows 302, 601, column 'profit'"):
        list(Reader(tmp_path / "log.parquet", COLUMNS, rows=600))
    with pytest.raises(ValueError, match="row 302, column 'profit'"):
        list(Reader(tmp_path / "log.parquet", COLUMNS, rows=100))


def test_what_is_no_log_is_refused(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "log.parquet"
    with pytest.raises(ValueError, match="no such log"):
        read_log(path, COLUMNS)
    path.write_text("hello")
    with pytest.raises(ValueError, match="log.parquet: can't be read as a log"):
        read_log(path, COLUMNS)
    path = tmp_path / "log.csv"
    for text, message in (
        ("customer,profit\n1,2\n", "expected columns valid_0_0"),
        ("customer,action_0,valid_0,valid_1\n1,0,1,1\n", "no column 'profit'"),
        ("customer,action_0,profit,valid_0,valid_1\n1,0,1,1,1\n", "expected columns feature_0"),
        ("customer,action_0,profit,valid_0,valid_1,state_0\n", "expected decisions, got no row"),
        ("customer,action_0,profit,valid_0,valid_1,state_0,next_state_0\n1,0,1,1,1,0,0\n", "no column 'next_valid_0'"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_log(path, COLUMNS)
    path.write_text("customer,action_0,profit,valid_0,valid_1,state_0\nK7,1,2.5,1,true,-1\nK9,0,1,1,0,3\n")
    log = read_log(path, COLUMNS)
    assert log.nvec == (2,) and log.unit.tolist() == [0, 1] and log.action.tolist() == [1, 0]
    assert (
        log.action_mask.tolist() == [[True, True], [True, False]]
        and log.terminated.all()
        and log.propensity.isnan().all()
    )


def test_probabilities_of_all_actions_give_the_propensity_and_some_alone_are_refused(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "log.csv"
    path.write_text(
        "customer,action_0,profit,valid_0,valid_1,feature_0,prob_0,prob_1\nK7,1,2.5,1,1,-1,.25,.75\nK9,0,1,1,1,3,.5,.5\n"
    )
    assert read_log(path, COLUMNS).propensity.tolist() == [0.75, 0.5]
    path.write_text("customer,action_0,profit,valid_0,valid_1,feature_0,prob_1\nK7,1,2.5,1,1,-1,.75\n")
    with pytest.raises(ValueError, match="no column 'prob_0'"):
        read_log(path, COLUMNS)


def test_an_unfinished_step_needs_a_next_action():
    log = made(5)
    nowhere = torch.zeros_like(log.next_action_mask)
    check_rows(replace(log, next_action_mask=torch.where(log.terminated[:, None], nowhere, log.next_action_mask)), "a")
    with pytest.raises(ValueError, match="next_valid_"):
        check_rows(replace(log, next_action_mask=nowhere), "a")


def test_outcomes_that_a_file_lacks_are_no_zeros(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "log.csv"
    path.write_text(SMALL)
    assert read_log(path, COLUMNS).outcomes == {}
    path.write_text(
        SMALL.replace("feature_1\n", "feature_1,trips\n").replace(",4\n", ",4,1\n").replace(",5\n", ",5,0\n")
    )
    log = read_log(path, COLUMNS)
    assert log.outcome("trips", "x").tolist() == [1, 0]
    with pytest.raises(ValueError, match="^log: no column 'redeemed', which algo.auxiliary learns from$"):
        log.outcome("redeemed", "algo.auxiliary")


def test_probabilities_of_all_pairs_must_fit():
    log = made(5)
    with pytest.raises(
        ValueError, match="row 2, column 'prob_.': expected probabilities of the valid pairs that add up to 1"
    ):
        check_rows(replace(log, probs=log.probs * torch.where(torch.arange(60) == 0, 0.9, 1.0)[:, None]), "log")
    with pytest.raises(ValueError, match="row 4, column 'propensity': expected what prob_. says"):
        check_rows(replace(log, propensity=log.propensity * torch.where(torch.arange(60) == 2, 0.5, 1.0)), "log")
    with pytest.raises(ValueError, match="row 12, column 'valid_.': expected at least one"):
        check_rows(replace(log, action_mask=log.action_mask & (torch.arange(60) != 10)[:, None], probs=None), "log")


def test_open_bandit_feedback_is_taken_over():
    feedback = {
        "n_rounds": 3,
        "n_actions": 4,
        "context": [[0.5], [1.0], [-1.0]],
        "action": [2, 0, 3],
        "position": [0, 2, 1],
        "reward": [1, 0, 1],
        "pscore": [0.25, 0.5, 0.25],
    }
    log = LoggedDataset.from_obp(feedback)
    assert log.nvec == (4,) and log.obs.tolist() == [[0.5, 1, 0, 0], [1.0, 0, 0, 1], [-1.0, 0, 1, 0]]
    assert log.reward.tolist() == [1, 0, 1] and log.propensity.tolist() == [0.25, 0.5, 0.25]
    assert LoggedDataset.from_obp({**feedback, "pscore": None, "position": None}).propensity.isnan().all()
    with pytest.raises(ValueError, match="bandit_feedback: row 3, column 'propensity'"):
        LoggedDataset.from_obp({**feedback, "pscore": [0.25, 1.5, 0.25]})
