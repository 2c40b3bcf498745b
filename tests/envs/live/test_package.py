"""A package: its scores are the policy's, damage and strange inputs are one line, and it is whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import script_runner
from configs import composed
from small_package import LEVELS, TODAY, config_of, export_small, rows, save, untrained, write_table

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("pyarrow")

from crm_rl import load
from envs.live.examples import UNKNOWN
from envs.live.export import make_decide, write_package
from envs.live.package import Package
from envs.live.package_files import MANIFEST, MANIFEST_SUM
from envs.offers.world.customers import CustomerState
from envs.offers.world.history import PassedWeek, SeenWeek
from rlcore.runs import checkpoint
from scripts.shared.cli import to_dict


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A package, the environment and the agent that it was exported of, and their configuration."""
    folder = tmp_path_factory.mktemp("package")
    config = config_of(folder)
    env, agent = untrained(config)
    (folder / "metrics.json").write_text(json.dumps({"policies": {"ppo": {"drift": -0.02, "prices": [9.0, 7.5]}}}))
    return export_small(folder, config, env, agent), env, agent, config


@pytest.fixture
def copied(made, tmp_path) -> Path:
    """A copy of the package, to be damaged."""
    return Path(shutil.copytree(made[0].folder, tmp_path / "policy"))


def table(count: int = 30, seed: int = 1) -> dict[str, list]:
    """Columns of new customers."""
    new = rows(count, seed)
    found = {name: [row[name] for row in new] for name in new[0]}
    return {**found, "age": [None if x == "" else float(x) for x in found["age"]]}


def changed(name: str, value, row: int = 3) -> dict[str, list]:
    """Columns of new customers, with one entry replaced."""
    columns = table()
    columns[name] = [value if k == row else x for k, x in enumerate(columns[name])]
    return columns


# ── scores ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_onnxruntime_scores_as_the_policy_does(made):
    """10,000 customers of every kind at 48 prices; decisions are equal wherever they are not a tie."""
    package, env, agent, _ = made
    columns = package.read(table(10_000, 2), today=TODAY)
    prices = torch.logspace(1.6, -1.3, 48)
    inputs = package.inputs(columns, 5, caps_left=torch.rand(10_000, package.num_cap_columns))
    module = make_decide(env, agent, package.transform.to_module())
    found = package.score(inputs, prices)
    with torch.no_grad():
        for rows_ in (slice(first, first + 1000) for first in range(0, 10_000, 1000)):
            logits, spend = module(*inputs.take(rows_), prices, torch.tensor(package.drift))
            ours = found.logits[:, rows_]
            is_finite = logits.isfinite()
            assert torch.equal(is_finite, ours.isfinite())
            assert (ours - logits)[is_finite].abs().max() <= 1e-4
            assert (found.spend[rows_] - spend).abs().max() <= 1e-5
            best = logits.topk(2, -1).values
            clear = (best[..., 0] - best[..., 1] > 1e-3) | best[..., 1].isinf()
            assert torch.equal(ours.argmax(-1)[clear], logits.argmax(-1)[clear]) and clear.float().mean() > 0.9
    choices = found.logits.argmax(-1)
    assert len(choices.unique()) > 3  # the policy tells customers and prices apart


def test_features_are_those_of_the_environment_bit_by_bit(made, tmp_path):
    package, env, _, config = made
    found = package.features(package.read(config["env"]["population"]["path"], today=TODAY))
    assert torch.equal(found, env.population.features.float())


def test_one_customer_and_one_price(made):
    package, *_ = made
    logits, spend = package.decide(table(1), week=0, prices=torch.tensor([2.0]), today=TODAY)
    assert logits.shape == (1, 1, 30) and spend.shape == (1, 30)
    whole = package.decide(table(30), week=0, prices=torch.tensor([5.0, 2.0]), today=TODAY)
    torch.testing.assert_close(whole.logits[1:, :1], logits, atol=1e-5, rtol=1e-5)
    nobody = package.score(package.inputs(package.read(table(), today=TODAY), 0).take(slice(0, 0)))
    assert nobody.logits.shape == (8, 0, 30) and nobody.spend.shape == (0, 30)


def test_who_opted_out_and_who_has_no_contact_left_gets_nothing(made):
    package, *_ = made
    columns = package.read(table(), today=TODAY)
    memory, caps_left = package.start_memory(30), torch.ones(30, package.num_cap_columns)
    memory[0, 0], caps_left[1, 1] = 1.0, 0.0
    scores = package.score(package.inputs(columns, 2, memory=memory, caps_left=caps_left))
    assert scores.logits[:, :2, 0].isfinite().all() and (scores.logits[:, :2, 1:] == -torch.inf).all()
    assert scores.logits[:, 2:, 5:].isfinite().all()
    with pytest.raises(ValueError, match="week: expected 0 to 11, got 12"):
        package.inputs(columns, 12)


def test_examples_have_every_level_and_every_kind_of_customer(made):
    import pyarrow.parquet

    package, *_ = made
    examples = pyarrow.parquet.read_table(package.folder / "examples.parquet")
    tier = set(examples.column("input: tier").to_pylist())
    assert tier == {*LEVELS, "other", UNKNOWN}
    assert examples.num_rows == 256 and examples.column("input: age").null_count
    memory = np.stack(examples.column("memory").to_numpy())
    caps = np.stack(examples.column("caps_left").to_numpy())
    mask = np.stack(examples.column("action_mask").to_numpy())
    assert 0 < (memory[:, 0] == 1).sum() < 256 and not mask[memory[:, 0] == 1, 1:].any()
    assert 0 < (caps == 0).all(1).sum() < 256 and not mask[(caps == 0).all(1), 1:].any()


def test_package_json_says_what_the_policy_is(made):
    package, env, _, config = made
    told = package.manifest
    assert told["drift"] == -0.02 and told["last_price"] == 7.5 and told["seed"] == config["seed"]
    assert package.weeks == 12 and package.contact_rules["caps"] == config["env"]["contact_rules"]["caps"]
    assert package.catalogue.offers == env.world.catalogue.offers and torch.equal(
        package.catalogue.value, env.world.catalogue.value
    )
    assert (package.prices.diff() < 0).all() and set(told["versions"]) >= {"torch", "onnx", "crm-rl"}
    kinds = {column.name: column.kind for column in package.columns}
    assert kinds["joined"] == "date" and kinds["app"] == kinds["age"] == "number" and kinds["tier"] == "text"
    spend = next(column for column in package.columns if column.name == "spend")
    train = env.population.columns["spend"][env.population.customers["train"].numpy()]
    assert spend.seen == pytest.approx((train.min(), train.max()))


# ── inputs held to ranges ───────────────────────────────────────────────────────────────────────────────────────────
def test_numbers_a_little_beyond_training_are_clipped_and_counted(made):
    package, *_ = made
    seen = next(column for column in package.columns if column.name == "spend").seen
    edge, beyond = seen.greatest + 0.2 * seen.width, seen.greatest + 0.9 * seen.width
    quiet = package.read(changed("spend", edge), today=TODAY)
    clipped = package.read(changed("spend", beyond), today=TODAY)
    assert quiet.clipped == {} and clipped.clipped == {"spend": 1}
    limit = package.read(changed("spend", seen.greatest + 0.25 * seen.width), today=TODAY)
    assert torch.allclose(package.features(clipped), package.features(limit), atol=1e-6)
    assert package.read(table(), today=TODAY).missing == {"age": 5}
    assert package.read(changed("tier", "платина, «new»"), today=TODAY).unknown == {"tier": 2}  # and a rare one


STRANGE = [
    ("spend", 1e38, "row 5, column 'spend': expected -30"),
    ("spend", -1e4, "row 5, column 'spend': expected"),
    ("spend", float("nan"), "row 5, column 'spend': expected a number, for in training none was missing, got none"),
    ("spend", float("inf"), "row 5, column 'spend': expected a number, got infinity"),
    ("age", float("-inf"), "row 5, column 'age': expected a number, got infinity"),
    ("spend", None, "row 5, column 'spend': expected a number, for in training none was missing"),
]


@pytest.mark.parametrize("name, value, says", STRANGE)
def test_numbers_that_training_tells_nothing_of_are_refused_by_row_and_column(made, name, value, says):
    with pytest.raises(ValueError) as refused:
        made[0].read(changed(name, value), today=TODAY)
    assert says.split("-30")[0] in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("value", [-0.0, 5e-324, 1e-310])
def test_zeros_of_either_sign_and_denormals_are_numbers(made, value):
    columns = package_scores(made[0], changed("spend", value))
    zero = package_scores(made[0], changed("spend", 0.0))
    assert torch.equal(columns.logits, zero.logits) and columns.spend.isfinite().all()


def package_scores(package: Package, columns):
    return package.decide(columns, week=1, today=TODAY)


@pytest.mark.parametrize("level", ['a, "quoted", level', "ünïcødé 顧客 клиент", "y" * 10_000, LEVELS[3], "12"])
def test_any_text_is_a_level_or_unknown(made, tmp_path, level):
    package, *_ = made
    new = rows(30, 1)
    new[3]["tier"] = level
    by_file = package.decide(write_table(tmp_path / "new.csv", new), week=1, today=TODAY)
    by_columns = package_scores(package, changed("tier", level))
    assert torch.equal(by_file.logits, by_columns.logits)
    unknown = package_scores(package, changed("tier", "other"))
    assert torch.equal(by_file.logits[:, 3], unknown.logits[:, 3]) == (level not in LEVELS)


# ── columns ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_columns_in_another_order_are_the_same_customers(made):
    package, columns = made[0], table()
    permuted = {name: columns[name] for name in reversed(columns)} | {"more": [1] * 30}
    assert torch.equal(package_scores(package, permuted).logits, package_scores(package, columns).logits)


def renamed(columns):
    return {("Spend" if name == "spend" else name): x for name, x in columns.items()}


OTHER_TABLES = [
    (renamed, "expected a column 'spend', which the policy was trained on; there are id, rate, Spend"),
    (lambda x: {k: v for k, v in x.items() if k != "tier"}, "expected a column 'tier'"),
    (lambda x: {**x, "spend": ["much"] * 30}, "column 'spend': expected numbers"),
    (lambda x: {**x, "spend": x["joined"]}, "column 'spend': expected numbers"),
    (lambda x: {**x, "joined": x["spend"]}, "column 'joined': expected dates"),
    (lambda x: {**x, "tier": x["spend"]}, "column 'tier': expected text"),
    (lambda x: {**x, "tier": list(map(str, x["spend"]))}, "column 'tier': expected text"),
    (lambda x: {**x, "spend": [[1]] * 30}, "column 'spend'"),
    (lambda x: {name: [] for name in x}, "expected customers, got no row"),
    (lambda x: {**x, "spend": [1.0]}, "can't be read as a table"),
    (lambda x: 7, "can't be read as a table"),
]


@pytest.mark.parametrize("change, says", OTHER_TABLES, ids=[says for _, says in OTHER_TABLES])
def test_another_table_is_refused_in_one_line(made, change, says):
    with pytest.raises(ValueError) as refused:
        package_scores(made[0], change(table()))
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_files_without_rows_and_dates_without_today_are_refused(made, tmp_path):
    package = made[0]
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match="empty.csv: can't be read as a table: no columns in its first line"):
        package.read(tmp_path / "empty.csv", today=TODAY)
    write_table(tmp_path / "head.csv", rows(1)).write_text(",".join(rows(1)[0]) + "\n")
    with pytest.raises(ValueError, match="head.csv: expected customers, got no row"):
        package.read(tmp_path / "head.csv", today=TODAY)
    with pytest.raises(ValueError, match="no such file"):
        package.read(tmp_path / "nowhere.csv", today=TODAY)
    with pytest.raises(ValueError, match="column 'joined': expected the date that its days count to"):
        package.read(table())
    for wrong in ("31.3.2025", "NaT", "soon"):
        with pytest.raises(ValueError, match=f"today: expected a date, year-month-day, got {wrong}"):
            package.read(table(), today=wrong)


# ── damage ──────────────────────────────────────────────────────────────────────────────────────────────────────────
FILES = ["decide.onnx", "examples.parquet", "metrics.json", MANIFEST, MANIFEST_SUM]


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_byte_or_a_missing_file_is_refused(copied, file):
    data = bytearray((copied / file).read_bytes())
    data[len(data) // 3] ^= 1
    (copied / file).write_bytes(data)
    with pytest.raises(ValueError, match=f"{copied}: damaged: ") as refused:
        load(copied)
    assert "\n" not in str(refused.value)
    (copied / file).unlink()
    with pytest.raises(ValueError, match="not a package"):
        load(copied)


def rewrite(folder: Path, **changes) -> None:
    """Change parts of package.json, with checksums that agree."""
    told = json.loads((folder / MANIFEST).read_text()) | changes
    told["files"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in told["files"]}
    text = json.dumps(told).encode()
    (folder / MANIFEST).write_bytes(text)
    (folder / MANIFEST_SUM).write_text(hashlib.sha256(text).hexdigest())


def test_a_package_of_another_catalogue_is_refused(copied):
    told = json.loads((copied / MANIFEST).read_text())
    told["env"]["catalogue"]["offers"]["euro_1_00"]["value"] = 2.0
    rewrite(copied, env=told["env"])
    with pytest.raises(ValueError, match="package.json has another catalogue than decide.onnx was written for"):
        load(copied)


def test_examples_that_come_out_otherwise_are_refused(copied):
    told = json.loads((copied / MANIFEST).read_text())
    rewrite(copied, examples=told["examples"] | {"prices": [x * 1.5 for x in told["examples"]["prices"]]})
    with pytest.raises(ValueError, match="does not find the scores of its examples again: logits differ by"):
        load(copied)


@pytest.mark.parametrize(
    "target, argument",
    [("os.system", "command"), ("envs.live.ledger.sqlite.SqliteLedger", "path"), ("builtins.open", "file")],
)
def test_nothing_that_a_package_names_is_run(copied, tmp_path, target, argument):
    """Not even a class of this project that opens a file or a database."""
    told = json.loads((copied / MANIFEST).read_text())
    told["env"]["reward"] = {"_target_": target, argument: str(tmp_path / "marker")}
    rewrite(copied, env=told["env"])
    with pytest.raises(ValueError, match=f"env.reward: names {target}, which is no part of a world"):
        load(copied)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("{_target_: envs.live.ledger.sqlite.SqliteLedger, path: MARKER}", "env.reward: expected an object, got str"),
        ({"trips": "${oc.create:{_target_: envs.live.ledger.sqlite.SqliteLedger, path: MARKER}}"}, "has a reference"),
    ],
)
def test_a_text_or_a_reference_hides_no_class_of_a_package(copied, tmp_path, part, message):
    told = json.loads((copied / MANIFEST).read_text())
    hidden = json.loads(json.dumps(part).replace("MARKER", str(tmp_path / "marker")))
    told["env"]["reward"] = hidden if isinstance(hidden, str) else told["env"]["reward"] | hidden
    rewrite(copied, env=told["env"])
    with pytest.raises(ValueError, match=message):
        load(copied)
    assert not (tmp_path / "marker").exists()


# ── whole or not at all ─────────────────────────────────────────────────────────────────────────────────────────────
def test_a_killed_export_leaves_a_whole_package(made, copied, monkeypatch):
    """The writer is killed before each call that touches the disk's names, one after the other."""
    package = made[0]
    files = {path.name: path.read_bytes() for path in package.folder.iterdir()}
    files["metrics.json"] = b"{}"
    told = json.loads(files[MANIFEST])
    told["files"]["metrics.json"] = hashlib.sha256(b"{}").hexdigest()
    files[MANIFEST] = json.dumps(told).encode()
    files[MANIFEST_SUM] = hashlib.sha256(files[MANIFEST]).hexdigest().encode()
    ended, calls = False, 0
    while not ended:
        child = os.fork()
        if not child:
            left = [calls]

            def dies_in_time(call, left=left):
                def either(*arguments, **keywords):
                    if not left[0]:
                        os._exit(9)
                    left[0] -= 1
                    return call(*arguments, **keywords)

                return either

            for name in ("replace", "fsync"):
                setattr(os, name, dies_in_time(getattr(os, name)))
            Package.load = lambda folder: None  # what it reads is judged below
            try:
                write_package(copied, files)
            except BaseException:
                os._exit(1)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, 9)
        ended = status == 0
        kept = load(copied)
        assert kept.manifest["files"] in (package.manifest["files"], told["files"])
        calls += 1
    assert calls > 5 and load(copied).manifest["files"] == told["files"]
    checkpoint.sweep(copied.parent)
    assert [path.name for path in copied.parent.iterdir()] == ["policy"]


def test_a_folder_of_something_else_is_not_replaced(made, tmp_path):
    _, env, agent, config = made
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "thesis.tex").write_text("years")
    with pytest.raises(ValueError, match="expected a new folder or an older package to replace"):
        export_small(tmp_path, config, env, agent)
    assert (tmp_path / "policy" / "thesis.tex").read_text() == "years"


# ── the script ──────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.slow
def test_the_script_refuses_what_no_shop_sees_in_one_line(tmp_path):
    config = config_of(tmp_path, "env/observation=state")
    _, agent = untrained(config)
    save(tmp_path / "checkpoint.pt", config, agent)
    refused = script_runner.run(tmp_path, "export", "checkpoint=checkpoint.pt", "out=policy")
    assert refused.returncode == 2 and "env/observation=history or belief" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1 and not (tmp_path / "policy").exists()
    nothing = script_runner.run(tmp_path, "export", "checkpoint=checkpoint.pt")
    assert nothing.returncode == 2 and nothing.stderr.startswith("error: out: expected a path")


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["env/population=synthetic", "env/observation=belief", "env.population.reference_size=500"],
        ["env/population=synthetic", "algo=bandit", "algo/exploration=neural_linear"],
    ],
    ids=["belief", "bandit"],
)
def test_other_policies_are_exported_by_the_script(tmp_path, overrides):
    """A belief is carried as in training; action values come out less what the price of the spend takes."""
    small = ["env.num_agents=40", "algo.auxiliary.hidden=[8]", "env.evaluation.price_grid.points=8"]
    belief = "env/observation=belief" in overrides
    more = ["env.observation.reference_size=300"] if belief else ["env/observation=history", "algo.num_steps=12"]
    config = to_dict(composed(*overrides, *small, *more), resolve=True)
    env, agent = untrained(config)
    save(tmp_path / "checkpoint.pt", config, agent)
    done = script_runner.run(tmp_path, "export", "checkpoint=checkpoint.pt", "out=policy")
    assert done.returncode == 0, done.stderr[-2000:]
    package = load(tmp_path / "policy")
    assert [column.name for column in package.columns][:2] == ["f0", "f1"]
    n = 20
    features = env.features[:n]
    columns = package.read({f"f{k}": features[:, k].double().numpy() for k in range(env.static_dim)})
    assert torch.equal(package.features(columns), features)
    if belief:
        whole = torch.arange(n)
        seen = SeenWeek(whole % 6, whole % 5, whole % 2 > 0, whole < 0, whole % 7 == 0, whole * 1.0)
        states = CustomerState(*4 * [whole])
        memory = env.codec.start_memory(features)
        assert torch.equal(package.start_memory(n), memory)
        expected = env.codec.remember(memory, features, PassedWeek(0, seen, states, states))
        assert torch.equal(package.remember(memory, package.features(columns), 0, seen), expected)
    else:
        scores = package.score(package.inputs(columns, 3))
        value = scores.logits + package.prices[:, None, None] * scores.spend
        finite = value[0].isfinite()
        torch.testing.assert_close(value[0][finite], value[-1][finite], atol=1e-4, rtol=1e-4)
