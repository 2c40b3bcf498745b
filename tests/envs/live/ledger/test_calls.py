"""Both stores against a model in plain Python: any calls in any order, from one program and from several at once."""

from __future__ import annotations

import threading
from datetime import datetime, timezone

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from envs.live.ledger.protocol import (
    ABSENT,
    EXPIRED,
    KNOWN,
    LATE,
    OVER,
    REFUNDED,
    REFUSED,
    RELEASED,
    RESERVED,
    REVERSED,
    SETTLED,
    UNITS,
    Balance,
    Request,
    to_units,
)
from ledger_stores import day, places, postgres_address

KEY = {"season": st.integers(0, 1), "week": st.integers(0, 1), "customer": st.sampled_from("ab")}
AMOUNT = st.integers(0, 6)
RECEIPT = st.sampled_from(["r1", "r2"])


class Message:
    """The model of an entry: what was held, and every payment with what became of it."""

    def __init__(self, status, held, expires):
        self.status, self.held, self.expires = status, held, expires
        self.settled = self.late = self.over = self.lapsed = 0
        self.receipts, self.answers, self.refunds, self.reversed = {}, {}, {}, set()

    @property
    def paid(self):
        return self.settled + self.late + self.over

    def pay(self, receipt, amount):
        if self.status == RESERVED:
            self.settled, self.over = min(amount, self.held), max(0, amount - self.held)
            self.status = OVER if self.over else SETTLED
        elif self.status in (SETTLED, OVER):
            self.over += amount
            self.status = OVER
        else:
            self.late += amount
            self.status = LATE
        self.receipts[receipt] = amount
        self.answers[receipt] = self.status
        return self.status

    def take_back(self, amount):
        for kind in ("over", "late", "settled"):
            part = min(amount, getattr(self, kind))
            setattr(self, kind, getattr(self, kind) - part)
            amount -= part
        if self.status == OVER and not self.over:
            self.status = SETTLED


class Calls(RuleBasedStateMachine):
    """Any calls in any order: every answer, and every balance after it, is the model's."""

    def __init__(self):
        super().__init__()
        self.places = self.new_places()
        self.place = next(self.places)
        self.ledger = self.place.open()
        self.budget, self.messages, self.till = {}, {}, 0

    def sums(self, week):
        mine = [message for key, message in self.messages.items() if key[:2] == week]
        held = sum(m.held for m in mine if m.status == RESERVED)
        return held, *(sum(getattr(m, name) for m in mine) for name in ("lapsed", "settled", "late", "over"))

    def in_use(self, week, grace):
        held, lapsed, settled, late, over = self.sums(week)
        return held + settled + over + max(late, -(-grace * lapsed // UNITS))

    @rule(season=KEY["season"], week=KEY["week"], budget=st.integers(0, 14), grace=st.sampled_from([0, 333_333, UNITS]))
    def fund(self, season, week, budget, grace):
        before = self.budget.get((season, week), (0, 0))
        tighter = budget < before[0] or grace > before[1]
        fits = not tighter or self.in_use((season, week), grace) <= budget
        assert self.ledger.fund(season, week, budget, grace=grace) == fits
        if fits:
            self.budget[season, week] = (budget, grace)

    @rule(**KEY, amount=AMOUNT, expires=st.integers(0, 9), alone=st.booleans())
    def reserve(self, season, week, customer, amount, expires, alone):
        key, found = (season, week, customer), self.messages.get((season, week, customer))
        request = Request("reserve", *key, "m", amount, day(expires))
        if (found and found.expires is not None and found.held != amount) or (not found and key[:2] not in self.budget):
            with pytest.raises(ValueError, match=f"week {week}"):
                self.call(request, alone)
            return
        answer = self.call(request, alone)
        if found:
            assert answer == KNOWN
        elif self.in_use(key[:2], self.budget[key[:2]][1]) + amount > self.budget[key[:2]][0]:
            assert answer == REFUSED
        else:
            assert answer == RESERVED
            self.messages[key] = Message(RESERVED, amount, expires)

    @rule(**KEY, amount=AMOUNT, receipt=RECEIPT, alone=st.booleans())
    def settle(self, season, week, customer, amount, receipt, alone):
        key, found = (season, week, customer), self.messages.get((season, week, customer))
        request = Request("settle", *key, receipt, amount)
        if key[:2] not in self.budget or (found and found.receipts.get(receipt, amount) != amount):
            with pytest.raises(ValueError, match=f"week {week}"):
                self.call(request, alone)
            return
        answer = self.call(request, alone)
        if found and receipt in found.receipts:
            assert answer == (REVERSED if receipt in found.reversed else found.answers[receipt])
            return
        if not found:
            found = self.messages[key] = Message(OVER, 0, None)
        assert answer == found.pay(receipt, amount)
        self.till += amount

    @rule(**KEY, amount=AMOUNT, receipt=RECEIPT)
    def refund(self, season, week, customer, amount, receipt):
        key, found = (season, week, customer), self.messages.get((season, week, customer))
        known = found.refunds.get(receipt) if found else None
        if found and ((known is None and amount > found.paid) or known not in (None, amount)):
            with pytest.raises(ValueError, match=f"week {week}"):
                self.ledger.refund(*key, amount, message=receipt)
            return
        assert self.ledger.refund(*key, amount, message=receipt) == (REFUNDED if found else ABSENT)
        if found and known is None:
            found.take_back(amount)
            found.refunds[receipt] = amount
            self.till -= amount

    @rule(**KEY, receipt=RECEIPT)
    def reverse(self, season, week, customer, receipt):
        key, found = (season, week, customer), self.messages.get((season, week, customer))
        if not found or receipt not in found.receipts:
            assert self.ledger.reverse(*key, message=receipt) == ABSENT
            return
        amount = found.receipts[receipt]
        if receipt not in found.reversed and amount > found.paid:
            with pytest.raises(ValueError, match="can't give back"):
                self.ledger.reverse(*key, message=receipt)
            return
        assert self.ledger.reverse(*key, message=receipt) == REVERSED
        if receipt not in found.reversed:
            found.take_back(amount)
            found.reversed.add(receipt)
            found.status = found.status if found.paid else REVERSED
            self.till -= amount

    @rule(**KEY, alone=st.booleans())
    def release(self, season, week, customer, alone):
        found = self.messages.get((season, week, customer))
        if found and found.status in (RESERVED, EXPIRED):
            found.status, found.lapsed = RELEASED, 0
        answer = self.call(Request("release", season, week, customer, "m"), alone)
        assert answer == (found.status if found else ABSENT)

    @rule(now=st.integers(0, 9))
    def expire(self, now):
        due = [m for m in self.messages.values() if m.status == RESERVED and m.expires <= now]
        for message in due:
            message.status, message.lapsed = EXPIRED, message.held
        assert self.ledger.expire(day(now)) == len(due)

    @rule(**KEY)
    def fail_in_the_middle(self, season, week, customer):
        requests = [
            Request("settle", season, week, customer, "new", 5),
            Request("refund", season, week, customer, "other", 2**40),
        ]
        with pytest.raises(ValueError):
            self.ledger.together(requests)

    @rule()
    def reopen(self):
        self.ledger.close()
        self.ledger = self.place.open()

    def call(self, request, alone):
        if not alone:
            return self.ledger.together([request])[0]
        key = request[1:4]
        if request.act == "reserve":
            return self.ledger.reserve(*key, request.amount, expires=request.expires, message=request.message)
        if request.act == "settle":
            return self.ledger.settle(*key, request.amount, message=request.message)
        return self.ledger.release(*key, message=request.message)

    @invariant()
    def money_is_the_models(self):
        for week, (budget, grace) in self.budget.items():
            balance = self.ledger.balance(*week)
            assert balance == Balance(budget, grace, *self.sums(week))
            assert balance.available == budget - self.in_use(week, grace)
        for key, message in self.messages.items():
            entry = self.ledger.entry(*key)
            assert entry[:5] == (message.status, message.held, message.settled, message.late, message.over)

    @invariant()
    def what_was_promised_is_kept(self):
        audit = self.ledger.audit()
        assert audit.sound and (audit.weeks, audit.entries) == (len(self.budget), len(self.messages))
        assert self.till == audit.settled + audit.late + audit.over
        for week, (budget, grace) in self.budget.items():
            held, lapsed, settled, late, over = self.sums(week)
            assert settled + held <= budget
            if not over and late * UNITS <= grace * lapsed:  # the share of late redemptions that `grace` covers
                assert settled + late <= budget

    def teardown(self):
        self.ledger.close()
        next(self.places, None)


@pytest.mark.long
@pytest.mark.parametrize(("store", "examples", "steps"), [("sqlite", 30, 40), ("postgres", 8, 30)])
def test_any_calls_in_any_order_get_the_models_answers(tmp_path_factory, store, examples, steps):
    if store == "postgres":
        postgres_address()
    new = {"new_places": lambda self: places(store, tmp_path_factory.mktemp("ledger"))}
    machine = type("Here", (Calls,), new)
    machine.TestCase.settings = settings(max_examples=examples, stateful_step_count=steps)
    machine.TestCase("runTest").runTest()


def test_programs_share_what_there_is_to_the_last_unit(place):
    """Eight threads ask at once for more money than there is, each key twice: exactly what fits is reserved, once."""
    first = place.open()
    first.fund(0, 0, 50, grace=0)
    answers = []

    def ask(k):
        ledger = place.open(caller=f"thread {k}")
        for customer in range(20):
            key = (0, 0, f"{k % 4}-{customer}")
            answers.append((key, ledger.reserve(*key, 1, expires=day(9), message=f"{k}")))
        ledger.close()

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = [key for key, answer in answers if answer == RESERVED]
    assert first.balance(0, 0) == Balance(50, 0, 50, 0, 0, 0, 0)
    assert len(answers) == 160 and len(told) == len(set(told)) == 50
    assert {answer for key, answer in answers if key in told} == {RESERVED, KNOWN}
    first.close()


def test_programs_that_move_the_same_weeks_don_t_wait_for_each_other_for_ever(place):
    """Transactions over the same weeks in opposite orders, while time frees entries: no deadlock, all is counted."""
    first = place.open()
    for week in range(4):
        first.fund(0, week, 10**6, grace=0)

    def move(k):
        ledger = place.open(caller=f"thread {k}")
        for turn in range(4):
            weeks = range(4) if k % 2 else range(3, -1, -1)
            name = f"{k}-{turn}"
            ledger.together([Request("reserve", 0, week, name, "m", 1, day(turn)) for week in weeks])
            ledger.expire(day(turn))
            ledger.together([Request("settle", 0, week, name, "r", 1) for week in weeks])
        ledger.close()

    threads = [threading.Thread(target=move, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    audit = first.audit()
    assert audit.sound and audit.entries == 4 * 4 * 4 and audit.settled + audit.late == 64
    first.close()


def test_the_journal_tells_who_did_what_when_and_for_which_message(place):
    before = datetime.now(timezone.utc)
    one, two = place.open(caller="sender"), place.open(caller="till")
    one.fund(3, 7, 100, grace=UNITS // 2)
    one.reserve(3, 7, "anna", 30, expires=day(5), message="job 1")
    one.reserve(3, 7, "anna", 30, expires=day(5), message="job 2")  # known: changes nothing, and leaves no record
    one.expire(day(5))
    two.settle(3, 7, "anna", 20, message="till 9")
    records = one.journal(3, 7)
    assert [(r.caller, r.message, r.act, r.status, r.amount) for r in records] == [
        ("sender", "", "fund", None, 100),
        ("sender", "job 1", "reserve", RESERVED, 30),
        ("sender", "", "expire", EXPIRED, 0),
        ("till", "till 9", "settle", LATE, 20),
    ]
    assert [(r.budget, r.grace, r.reserved, r.lapsed, r.late) for r in records] == [
        (100, UNITS // 2, 0, 0, 0),
        (0, 0, 30, 0, 0),
        (0, 0, -30, 30, 0),
        (0, 0, 0, 0, 20),
    ]
    assert [r.previous for r in records[1:]] == [None, records[1].id, records[2].id]
    assert before <= records[0].at <= records[-1].at <= datetime.now(timezone.utc)
    assert one.journal(3, 8) == [] and one.entry(3, 7, "anna").message == "job 1"
    one.close()
    two.close()


def test_erased_customers_leave_their_money_and_no_name(place):
    ledger = place.open()
    ledger.fund(0, 0, 100, grace=0)
    ledger.reserve(0, 0, "anna", 30, expires=day(5), message="m")
    with pytest.raises(ValueError, match="money is reserved"):
        ledger.erase("anna")
    ledger.settle(0, 0, "anna", 20, message="r")
    ledger.reserve(0, 0, "bert", 5, expires=day(5), message="m")
    before = ledger.journal(0, 0), ledger.balance(0, 0)
    assert ledger.erase("anna") and not ledger.erase("anna")
    assert ledger.entry(0, 0, "anna") is None and ledger.entry(0, 0, "bert").held == 5
    assert (ledger.journal(0, 0), ledger.balance(0, 0)) == before and ledger.audit().sound
    ledger.close()


# ── bad input ───────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("amount", [-1, 0.5, True, np.bool_(True), 2**70, "5", None, float("nan")])
def test_numbers_are_whole(place, amount):
    ledger = place.open()
    ledger.fund(0, 0, 10, grace=0)
    for call in (
        lambda: ledger.fund(0, 0, amount, grace=0),
        lambda: ledger.fund(0, 0, 10, grace=amount),
        lambda: ledger.fund(amount, 0, 10, grace=0),
        lambda: ledger.reserve(0, amount, "a", 1, expires=day(1), message="m"),
        lambda: ledger.reserve(0, 0, "a", amount, expires=day(1), message="m"),
        lambda: ledger.settle(0, 0, "a", amount, message="m"),
        lambda: ledger.balance(0, amount),
    ):
        with pytest.raises(ValueError, match="expected a whole number"):
            call()
    assert ledger.balance(0, 0) == Balance(10, 0, 0, 0, 0, 0, 0)
    ledger.close()


@pytest.mark.parametrize("customer", [17, 17.0, None, b"17", "", "x" * 1001, "a\0b", "half \ud800"])
def test_customers_and_messages_are_texts(place, customer):
    ledger = place.open()
    ledger.fund(0, 0, 10, grace=0)
    for call in (
        lambda: ledger.reserve(0, 0, customer, 1, expires=day(1), message="m"),
        lambda: ledger.reserve(0, 0, "a", 1, expires=day(1), message=customer),
        lambda: ledger.erase(customer),
        lambda: ledger.together([Request("settle", 0, 0, customer, "m", 1)]),
    ):
        with pytest.raises(ValueError, match="ledger: (customer|message): expected"):
            call()
    ledger.close()


@pytest.mark.parametrize("moment", [5, 20_000.0, None, "2026-01-01", datetime(2026, 1, 1)])
def test_moments_have_a_unit_and_a_time_zone(place, moment):
    ledger = place.open()
    ledger.fund(0, 0, 10, grace=0)
    with pytest.raises(ValueError, match="expected a datetime with a time zone"):
        ledger.reserve(0, 0, "a", 1, expires=moment, message="m")
    with pytest.raises(ValueError, match="expected a datetime with a time zone"):
        ledger.expire(moment)
    ledger.close()


def test_numpy_s_integers_name_the_same_week(place):
    ledger = place.open()
    assert ledger.fund(0, 3, 100, grace=0)
    assert ledger.fund(np.int64(0), np.int32(3), np.int64(90), grace=np.uint8(0))
    assert ledger.reserve(np.int8(0), np.int64(3), "a", np.int64(90), expires=day(1), message="m") == RESERVED
    assert ledger.reserve(0, 3, "a", 90, expires=day(1), message="m") == KNOWN
    assert ledger.audit().weeks == 1 and ledger.balance(0, 3).available == 0
    ledger.close()


def test_sums_that_no_database_holds_are_refused(place):
    ledger = place.open()
    ledger.fund(0, 0, 2**62, grace=UNITS)
    assert ledger.settle(0, 0, "a", 2**62, message="1") == OVER
    with pytest.raises(ValueError):
        for receipt in "2345":
            ledger.settle(0, 0, "a", 2**62, message=receipt)
    assert ledger.audit().sound
    ledger.close()


def test_money_becomes_whole_units():
    assert [to_units(x) for x in (0.0, 0.1 + 0.2, 2.5, 1e-6)] == [0, 300000, 2500000, 1]
