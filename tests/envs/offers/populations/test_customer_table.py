"""The user's own table: reading, refusals, one transform for all tables, a shop from end to end."""

from __future__ import annotations

import datetime as dt
import json
import math
import statistics
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

import script_runner
from configs import load
from envs.offers.populations.customer_table import CustomerTable
from envs.offers.world.customers import HABITS
from envs.tables.table_reader import read_table
from scripts import example_shop

pytest.importorskip("pyarrow")
ROOT = Path(__file__).parents[4]
SMALL = [
    "env.num_agents=48",
    "algo.minibatches=4",
    "algo.network.hidden=[16]",
    "algo.auxiliary.hidden=[8]",
    "algo.eval_every=2",
    "env.evaluation.customers=30",
    "env.evaluation.seasons=2",
    "env.evaluation.validation=16",
    "env.evaluation.tuning_customers=20",
    "env.evaluation.tuning_seasons=1",
    "env.evaluation.fees=[0.5]",
    "env.evaluation.regression_customers=300",
    "env.evaluation.price_grid.points=8",
    "env.evaluation.bound.max_evaluations=12",
    "device=cpu",
]


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    """The example shop with 400 customers."""
    folder = tmp_path_factory.mktemp("shop")
    example_shop.write_shop(folder, 400, 0)
    return folder


def environment(folder: Path, *overrides, seed=0):
    """Build the environment of the shop's experiment, where states are seen: the view with the fewest parts."""
    small = ["env.num_agents=50", f"hydra.searchpath=[file://{folder}]"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose(
            "train",
            overrides=[*small, "experiment=shop", "env/observation=state", *overrides],
        )
    return instantiate(cfg.env, _convert_="all")(torch.device("cpu"), seed)


def table(path, **changes) -> CustomerTable:
    """Build the shipped population on a file."""
    return load("population/customer_table", load("catalogue/default"), path=str(path), **changes)


def csv(path: Path, *columns, rows=60, end="\n", **more) -> Path:
    """Write a table of customers with columns {name: function of the row}."""
    made = {
        "id": lambda k: f"c{k}",
        "rate": lambda k: 0.1 + k % 7 / 10,
        "spend": lambda k: 20 + k,
        "margin": lambda k: 0.2 + k % 3 / 10,
        **more,
    }
    lines = [",".join(made), *(",".join(str(f(k)) for f in made.values()) for k in range(rows)), ""]
    path.write_bytes(end.join(lines).encode())
    return path


def draw(population, n, split="train", seed=0):
    """Draw customers."""
    return population.draw(n, torch.Generator().manual_seed(seed), split)


@pytest.mark.slow
# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_line_ends_byte_order_marks_and_parquet_do_not_matter(tmp_path):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    plain = csv(tmp_path / "plain.csv", kind=lambda k: "ab"[k % 2])
    windows = csv(tmp_path / "windows.csv", end="\r\n", kind=lambda k: "ab"[k % 2])
    windows.write_bytes(b"\xef\xbb\xbf" + windows.read_bytes())
    pd.read_csv(plain).to_parquet(tmp_path / "table.parquet")
    made = [table(path, min_level_count=5) for path in (plain, windows, tmp_path / "table.parquet")]
    for other in made[1:]:
        assert other.ids == made[0].ids and other.transform.names == made[0].transform.names
        assert torch.equal(other.features, made[0].features)
        assert torch.equal(draw(other, 9).customers.alpha, draw(made[0], 9).customers.alpha)


def test_an_index_without_a_name_is_left_out(tmp_path):
    plain = csv(tmp_path / "plain.csv")
    lines = plain.read_text().splitlines()
    indexed = tmp_path / "indexed.csv"
    indexed.write_text("\n".join([f",{lines[0]}", *(f"{k},{line}" for k, line in enumerate(lines[1:]))]))
    assert table(indexed).transform.names == table(plain).transform.names
    assert torch.equal(table(indexed).features, table(plain).features)


def test_columns_are_numbers_or_text_as_their_entries_are(tmp_path):
    path = csv(
        tmp_path / "t.csv",
        code=lambda k: f"0{k % 3}",
        word=lambda k: "x" if k % 2 else "1",
        gap=lambda k: "" if k < 9 else k,
    )
    columns = read_table(str(path), ",", text=["code"], numbers=[], rows="customers", where="env.population")
    assert {name: column.dtype.kind for name, column in columns.items()} == {
        "id": "O",
        "rate": "f",
        "spend": "f",
        "margin": "f",
        "code": "O",
        "word": "O",
        "gap": "f",
    }
    assert columns["code"][4] == "01" and columns["gap"][8] != columns["gap"][8] and columns["gap"][9] == 9


LINES = ["id,rate,spend,margin,visits,tier"] + [f"c{k},0.3,20,0.25,{k},gold" for k in range(80)]


@pytest.mark.parametrize(
    "change, says",
    [
        (
            lambda x: [",".join(line.split(",")[:2] + line.split(",")[3:]) for line in x],
            "no column 'spend' (env.population.spend)",
        ),
        (
            lambda x: [*x[:17], "c16,0.3,nan,0.25,1,gold", *x[18:]],
            "row 18, column 'spend': expected a number, got 'nan'",
        ),
        (
            lambda x: [*x[:17], "c16,0.3,inf,0.25,1,gold", *x[18:]],
            "row 18, column 'spend': expected a number, got 'inf'",
        ),
        (
            lambda x: [*x[:9], "c8,0.3,dear,0.25,1,gold", *x[10:]],
            "row 10, column 'spend': expected a number, got 'dear'",
        ),
        (
            lambda x: [*x[:9], "c8,0.3,20,0.25,many,gold", *x[10:]],
            "row 10, column 'visits': expected a number, got 'many'",
        ),
        (
            lambda x: [line.replace(",20,", ",dear,") for line in x],
            "row 2, column 'spend': expected a number, got 'dear'",
        ),
        (lambda x: [*x[:9], "c3,0.3,20,0.25,1,gold", *x[10:]], "row 10, column 'id': id 'c3' is that of row 5 too"),
        (lambda x: [*x[:9], ",0.3,20,0.25,1,gold", *x[10:]], "row 10, column 'id': expected an id"),
        (
            lambda x: [*x[:9], "c8,1.3,20,0.25,1,gold", *x[10:]],
            "row 10, column 'rate': expected a share from 0 to 1, got 1.3",
        ),
        (
            lambda x: [*x[:9], "c8,0.3,-2,0.25,1,gold", *x[10:]],
            "row 10, column 'spend': expected money, at least 0, got -2",
        ),
        (
            lambda x: [*x[:9], "c8,0.3,2,25,1,gold", *x[10:]],
            "row 10, column 'margin': expected a share from -1 to 1, got 25",
        ),
        (lambda x: [*x[:9], "c8,0.3,20,0.25,1,gold,more", *x[10:]], "can't be read as a table"),
        (lambda x: [x[0] + ",tier", *(line + ",a" for line in x[1:])], "column 'tier' comes twice"),
        (lambda x: x[:1], "expected customers, got no row"),
        (lambda x: x[:3], "too few"),
        (lambda x: [x[0] + ",word", *(f"{line},w{k}" for k, line in enumerate(x[1:]))], "column 'word': none of its"),
        (lambda x: [], "can't be read as a table"),
        (
            lambda x: [*x[:9], "c8,0.3,20,0.25,1e308,gold", *x[10:]],
            "row 10, column 'visits': expected a number that float32 can hold, got 1e+308",
        ),
        (
            lambda x: [*x[:9], "c8,0.3,1e39,0.25,1,gold", *x[10:]],
            "row 10, column 'spend': expected a number that float32 can hold, got 1e+39",
        ),
        (lambda x: [line.replace(",20,", ",0,") for line in x], "column 'spend': expected an entry other than 0"),
        (
            lambda x: [x[0] + ",since", *(f"{y},2026-0{1 + k % 9}-30" for k, y in enumerate(x[1:]))],
            "row 3, column 'since': expected a date, year-month-day, got '2026-02-30'",
        ),
        (lambda x: [line.replace(",", ";") for line in x], "row 1: expected columns separated by ',', got semicolons"),
        (lambda x: [line + "," for line in x], "row 1, column 7: expected a name, got nothing"),
        (lambda x: [*x[:9], "c\0,0.3,20,0.25,1,gold", *x[10:]], "row 10, column 'id': expected an id without a NUL"),
    ],
)
def test_broken_tables_get_one_line_with_row_and_column(tmp_path, change, says):
    path = tmp_path / "broken.csv"
    path.write_text("".join(line + "\n" for line in change(LINES)))
    with pytest.raises(ValueError) as refused:
        table(path)
    assert str(refused.value).startswith(f"{path}: ") and says in str(refused.value) and "\n" not in str(refused.value)


def test_files_that_are_no_tables_get_one_line(tmp_path):
    (tmp_path / "noise.csv").write_bytes(bytes(range(128, 256)) * 9)
    (tmp_path / "noise.parquet").write_bytes(bytes(range(256)))
    for name in ("noise.csv", "noise.parquet"):
        with pytest.raises(ValueError, match=f"{name}: can't be read as a table"):
            table(tmp_path / name)
    with pytest.raises(ValueError, match="nowhere.csv: no such file"):
        table(tmp_path / "nowhere.csv")
    with pytest.raises(ValueError, match="env.population.path: expected"):
        load("population/customer_table", load("catalogue/default"))


# ── customers ───────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("visits", [[1, 2], {"web": 1}])
def test_a_column_of_lists_or_mappings_is_refused(tmp_path, visits):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"id": [f"c{k}" for k in range(60)], "rate": [0.3] * 60, "spend": [20.0] * 60, "margin": [0.25] * 60}
    parquet.write_table(pa.table({**columns, "visits": [visits] * 60}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="row 2, column 'visits': expected a number, a date or text, got a list or "):
        table(tmp_path / "t.parquet")


def test_what_the_table_says_of_a_customer_is_what_the_world_gets(tmp_path):
    population = table(csv(tmp_path / "t.csv", rate=lambda k: (0, 1, 0.4)[k % 3]))
    sample = draw(population, 30)
    c, rows = sample.customers, sample.row.tolist()
    for i, k in enumerate(rows):
        assert population.ids[k] == f"c{k}"
        assert torch.sigmoid(c.alpha[i] + c.kappa[i] / 2).item() == pytest.approx((0.01, 0.99, 0.4)[k % 3])
        assert c.margin[i].item() == pytest.approx((20 + k) * (0.2 + k % 3 / 10))
    assert torch.equal(sample.features, population.features[sample.row])
    assert sample.state.habit.max() < HABITS and not sample.state.status.any()
    again = draw(population, 30, seed=1).customers
    assert not torch.equal(again.kappa, c.kappa)  # what the table doesn't say is drawn anew


def test_what_is_not_mapped_comes_from_the_priors(tmp_path):
    population = table(csv(tmp_path / "t.csv"), rate=None, margin=None)
    c, rows = (x := draw(population, 30)).customers, x.row
    share = c.margin / (20 + rows)
    assert ((share > 0.18) & (share < 0.30)).all()
    assert torch.sigmoid(c.alpha + c.kappa / 2).unique().numel() == 30
    assert "rate" in population.transform.names  # still a feature


def test_an_id_is_on_one_side_in_every_table(tmp_path):
    first = table(csv(tmp_path / "a.csv", rows=500))
    later = table(csv(tmp_path / "b.csv", rows=900, id=lambda k: f"c{1000 - k}"))
    sides = [
        {split: {x.ids[k] for k in x.customers[split].tolist()} for split in ("train", "test")} for x in (first, later)
    ]
    assert not sides[0]["train"] & sides[0]["test"] and not sides[0]["train"] & sides[1]["test"]
    assert len(sides[0]["test"]) / 500 == pytest.approx(0.4, abs=0.08) and sides[0]["test"] & sides[1]["test"]
    for n in (7, 1000):
        assert torch.isin(first.choose(n, torch.Generator().manual_seed(n), "test"), first.customers["test"]).all()


def test_prospects_and_losses_get_what_the_rule_says(tmp_path, capsys):
    spend = {0: 0, 1: ""}
    path = csv(
        tmp_path / "t.csv",
        rate=lambda k: {2: ""}.get(k, 0.1 + k % 7 / 10),
        spend=lambda k: spend.get(k, 20 + k),
        margin=lambda k: {3: -0.2, 4: 0, 5: ""}.get(k, 0.2 + k % 3 / 10),
    )
    population = table(path, least_margin=0.02)
    train = population.customers["train"].tolist()
    medians = {
        "spend": statistics.median(20 + k for k in train if k > 1),
        "rate": statistics.median(0.1 + k % 7 / 10 for k in train if k != 2),
        "margin": statistics.median({3: -0.2, 4: 0}.get(k, 0.2 + k % 3 / 10) for k in train if k != 5),
    }
    known = {key: x.tolist() for key, x in population.known.items()}
    assert known["spend"][:3] == [medians["spend"], medians["spend"], 22]
    assert known["rate"][2] == medians["rate"] and known["rate"][3] == 0.1 + 3 / 10
    assert known["margin"][3:6] == [0.02, 0.02, medians["margin"]]
    draw(population, 5)
    draw(population, 5)
    lines = capsys.readouterr().err.splitlines()
    assert sum("env.population.spend: 2 customers have 0 or no entry in 'spend'" in line for line in lines) == 1
    assert sum("env.population.margin: 2 customers have 0 or less in 'margin', and get 0.02" in x for x in lines) == 1
    later = table(csv(tmp_path / "later.csv", spend=lambda k: 0 if k == 7 else 500))
    later.load_state_dict(population.state_dict())
    assert later.known["spend"][7] == medians["spend"]  # of the training customers of the policy's table


def test_what_null_means_is_printed_once(tmp_path, capsys):
    population = table(csv(tmp_path / "t.csv"), rate=None, margin=None)
    draw(population, 5)
    draw(population, 5)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["note", "note"]
    assert "env.population.rate=null: the rate of each customer is drawn anew" in lines[0]
    assert "env.population.priors.margin_rate=[0.18, 0.3]" in lines[1]


# ── the transform ───────────────────────────────────────────────────────────────────────────────────────────────────
def test_features_are_standardised_numbers_and_levels(tmp_path):
    path = csv(
        tmp_path / "t.csv",
        rows=200,
        tier=lambda k: ("gold", "basic", "", "rare" if k < 20 else "basic")[k % 4],
        same=lambda k: 3,
    )
    population = table(path, min_level_count=10)
    assert population.transform.names == [
        "rate",
        "spend",
        "margin",
        "same",
        "tier: (empty)",
        "tier: basic",
        "tier: gold",
        "tier: other",
    ]
    x = population.features[population.customers["train"]]
    torch.testing.assert_close(x[:, :3].mean(0), torch.zeros(3, dtype=x.dtype), atol=1e-9, rtol=0)
    torch.testing.assert_close(x[:, :3].std(0, correction=0), torch.ones(3, dtype=x.dtype))
    assert not x[:, 3].any()
    for k, levels in enumerate(population.features[:, 4:].tolist()):
        assert levels == [k % 4 == 2, k % 4 == 1 or (k % 4 == 3 and k >= 20), k % 4 == 0, k % 4 == 3 and k < 20]


def test_the_saved_transform_makes_the_same_features_of_another_table(tmp_path):
    trained = table(csv(tmp_path / "a.csv", rows=200, tier=lambda k: "abc"[k % 3]), min_level_count=5)
    torch.save(trained.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    later = table(
        csv(tmp_path / "b.csv", rows=90, new=lambda k: k, tier=lambda k: "zca"[k % 3], spend=lambda k: 500),
        min_level_count=5,
    )
    assert later.num_features != trained.num_features
    later.load_state_dict(state)
    assert later.num_features == trained.num_features == later.features.shape[1]
    spend = trained.transform.numbers["spend"]
    assert later.features[:, 1].unique().tolist() == [pytest.approx((spend["high"] - spend["mean"]) / spend["sd"])]
    # an unknown level is none where nothing was rare
    assert later.features[:2, 3:].tolist() == [[0, 0, 0], [0, 0, 1]]
    for change, says in (
        ({"tier": lambda k: k}, "'tier': expected text"),
        ({"spend2": lambda k: 1}, "expected a column 'tier'"),
    ):
        other = table(csv(tmp_path / "c.csv", **change))
        with pytest.raises(ValueError, match=f"c.csv: .*{says}"):
            other.load_state_dict(state)


def test_a_column_in_another_unit_is_clipped_and_counted_and_all_others_keep_every_bit(tmp_path, capsys):
    """Cents in place of euros gave all customers the dearest offer."""
    trained = table(csv(tmp_path / "a.csv", rows=200))
    draw(trained, 5)
    assert not capsys.readouterr().err
    train = trained.customers["train"]
    low, high = (x.item() for x in (20 + train.min(), 20 + train.max()))
    later = table(csv(tmp_path / "b.csv", rows=200, spend=lambda k: 100 * (20 + k) if k < 130 else 20 + k))
    later.load_state_dict(trained.state_dict())
    column = trained.transform.names.index("spend")
    top, same = 1.25 * high - 0.25 * low, [k for k in range(3) if k != column]
    for k in range(200):
        spend = min(top, 100 * (20 + k)) if k < 130 else 20 + k
        fitted = trained.transform.numbers["spend"]
        assert later.features[k, column].item() == pytest.approx((spend - fitted["mean"]) / fitted["sd"])
    assert torch.equal(later.features[130:], trained.features[130:])
    assert torch.equal(later.features[:, same], trained.features[:, same])
    draw(later, 5)
    draw(later, 5, split="test")
    line, drifted = capsys.readouterr().err.splitlines()
    assert "customers differ from those of training" in drifted and "spend" in drifted
    assert line.startswith(f"warning: {tmp_path / 'b.csv'}: clipped to the range of training: 'spend' (")
    assert line.endswith(f" to {top:g}) of 130 customers")


def test_a_missing_number_is_the_median_of_training_and_a_feature_of_its_own(tmp_path, capsys):
    """The references are scalars of Python's statistics."""
    ages = [None if k % 5 == 0 else 18 + k % 61 for k in range(200)]
    path = csv(tmp_path / "t.csv", rows=200, age=lambda k: "" if ages[k] is None else ages[k])
    population = table(path)
    known = [ages[k] for k in population.customers["train"].tolist() if ages[k] is not None]
    mean, sd, median = statistics.fmean(known), statistics.pstdev(known), statistics.median(known)
    assert population.transform.names == ["rate", "spend", "margin", "age", "age: missing"]
    for age, (value, is_missing) in zip(ages, population.features[:, 3:].tolist()):
        assert value == pytest.approx(((median if age is None else age) - mean) / sd)
        assert is_missing == (age is None)
    later = table(csv(tmp_path / "b.csv", rows=90, age=lambda k: "" if k < 30 else 40))
    later.load_state_dict(population.state_dict())
    assert later.features[0, 3].item() == pytest.approx((median - mean) / sd)
    assert later.features[:, 4].tolist() == [1.0] * 30 + [0.0] * 60
    draw(later, 5)
    assert (
        f"customers without a number get the column's median in training: 'age' {median:g} (30 customers)"
        in capsys.readouterr().err
    )


def test_gaps_that_training_never_saw_have_no_feature(tmp_path):
    whole = table(csv(tmp_path / "a.csv", age=lambda k: k % 9))
    later = table(csv(tmp_path / "b.csv", age=lambda k: "" if k == 3 else k % 9))
    later.load_state_dict(whole.state_dict())
    assert later.transform.names == whole.transform.names and later.features.isfinite().all()


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_dates_are_days_before_a_date_and_true_and_false_are_1_and_0(tmp_path, kind):
    pa = pytest.importorskip("pyarrow")
    days = [dt.date(2025, 1, 1) + dt.timedelta(days=3 * k) for k in range(60)]
    plain = csv(
        tmp_path / "t.csv",
        joined=lambda k: "" if k < 9 else f"{days[k]} 10:30:00" if k % 2 else days[k],
        app=lambda k: ("True", "false")[k % 2],
    )
    path = plain
    if kind == "parquet":
        frame = pa.csv.read_csv(plain, convert_options=pa.csv.ConvertOptions(column_types={"joined": pa.string()}))
        stamps = pa.array([None if k < 9 else days[k] for k in range(60)], pa.date32()).cast(pa.timestamp("ns"))
        frame = frame.set_column(frame.column_names.index("joined"), "joined", stamps)
        path = tmp_path / "t.parquet"
        pa.parquet.write_table(frame, path)
    for reference, last in ((None, days[-1]), ("2026-01-31", dt.date(2026, 1, 31))):
        population = table(path, reference_date=reference)
        expected = [math.nan if k < 9 else (last - days[k]).days for k in range(60)]
        assert population.columns["joined"].tolist() == pytest.approx(expected, nan_ok=True)
        assert population.columns["app"].tolist() == [1.0, 0.0] * 30
        assert population.transform.names[-3:] == ["joined", "app", "joined: missing"]
    with pytest.raises(ValueError, match="env.population.reference_date: expected null or a date"):
        table(path, reference_date="31.1.2026")


@pytest.mark.parametrize(
    "values, says",
    [
        (lambda k: -999 if k % 5 == 0 else 18 + k % 70, "-999 (24 times) is far from all others, 19 to 86"),
        (lambda k: 1e12 if k == 2 else 18 + k % 70, "1e+12 (1 times) is far from all others, 18 to 86"),
        (lambda k: 1000 * (1 + k // 90) if k > 195 else k % 5, "3000 (2 times) is far from all others, 0 to 4"),
        (
            lambda k: -1 if k % 4 == 0 else 18 + k % 70,
            "-1 (27 times) is a usual sign for a missing number, beside the others, 18 to 85",
        ),
        (
            lambda k: 99 if k % 4 == 0 else 18 + k % 70,
            "99 (27 times) is a usual sign for a missing number, beside the others, 18 to 85",
        ),
        (lambda k: 99 if k == 99 else 18 + k % 90, None),
        (lambda k: k % 7 - 1, None),
        (lambda k: k % 2, None),
        (lambda k: 2.0 ** (k % 20), None),
        (lambda k: 7, None),
    ],
)
def test_numbers_far_from_all_others_are_warned_of(tmp_path, capsys, values, says):
    path = csv(tmp_path / "t.csv", rows=200, age=values, id=lambda k: f"c{k + 3}")
    population = table(path, split_salt=1)
    assert population.customers["train"].min() == 2  # the customer of 1e12 is trained on
    draw(population, 5)
    lines = [line for line in capsys.readouterr().err.splitlines() if "clipped" not in line]
    assert len(lines) == (says is not None)
    assert says is None or (f"{path}: column 'age': " in lines[0] and says in lines[0])


@pytest.mark.long
def test_an_environment_takes_the_transform_over_before_a_learner_is_built(shop, tmp_path):
    env = environment(shop)
    example_shop.write_shop(tmp_path, 300, 1)
    text = (tmp_path / "customers.csv").read_bytes().replace(b"north", b"abroad")
    (tmp_path / "customers.csv").write_bytes(text)
    other = environment(tmp_path, "env.population.min_level_count=1")
    assert other.obs_dim != env.obs_dim
    other.load_fitted(env.state_dict())
    drift = [message for message in other.population.messages if "population stability index" in message]
    assert len(drift) == 1 and drift[0].split("index: ")[1].startswith("Region ")
    env.load_fitted(env.state_dict())
    assert not any("population stability index" in message for message in env.population.messages)
    assert other.obs_dim == env.obs_dim and other.context_dim == env.context_dim
    obs, _ = other.reset()
    assert obs.shape == (50, env.obs_dim)


# ── a shop ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_shops_rules_reach_the_environment(shop):
    env = environment(shop)
    _, mask = env.reset()
    columns, names = env.population.columns, env.contact_rules.catalogue
    rows = env.contact_policy.exclusions[0].excluded.new_zeros(len(mask))
    sample = env.population.draw(50, torch.Generator().manual_seed(3), "train")
    pairs = env.contact_rules.policy(sample)(~rows, []).action_mask.view(-1, *names.nvec)
    for k, row in enumerate(sample.row.tolist()):
        held = env.contact_rules.policy(sample).exclusions[-1].excluded[k].item()
        tier, age, basket = columns["Tier"][row], columns["Age"][row], columns["Basket"][row]
        offers = [True, tier != "basic" and basket >= 20, age >= 18]
        channels = [columns["App Installed"][row] == "yes", columns["Newsletter"][row] == "yes", True]
        assert pairs[k, 1:].tolist() == [[o and c and not held for c in channels] for o in map(bool, offers)]
    cap = 3  # of the cap of 4 weeks, what is left now, in a week and in two
    assert env.codec.context_dim == env.population.num_features + cap + 6 + 4 + 3 + 3 + 12


def run(folder, script, *overrides, check=True):
    """Run a script in a folder."""
    done = script_runner.run(folder, script, *overrides)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.long
def test_a_shop_is_trained_planned_and_evaluated_as_a_new_user_would(shop, tmp_path):
    run(
        tmp_path,
        "train",
        "-cd",
        str(shop),
        "experiment=shop",
        *SMALL,
        "algo.total_steps=384",
        "algo.num_steps=4",
        "env.world.season=[1.0,1.1,1.2,0.9]",
        "hydra.run.dir=out",
    )
    result = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert {"planning", "planning on θ̂", "ppo", "myopic knapsack"} <= set(result["policies"])
    assert "holdout" in result["rules"] and result["policies"]["planning"]["score"] <= 1
    run(tmp_path, "evaluate", "checkpoint=out/checkpoint.pt", "device=cpu", "hydra.run.dir=again")
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert again["policies"] == result["policies"]
    later = csv(tmp_path / "later.csv")
    refused = run(tmp_path, "evaluate", "checkpoint=out/checkpoint.pt", f"+env.population.path={later}", check=False)
    lines = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert refused.returncode == 2 and "Traceback" not in refused.stderr and len(lines) == 1 and "later.csv" in lines[0]
