"""Signals that ask a training to stop: each lets the iteration end and be saved."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode

from scripts.shared.cli import ended_by_sigterm, report_thread
from scripts.shared.stopping import STOP_SIGNALS, interrupts, overrides_to_go_on


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_noted_and_its_handler_comes_back(number):
    inherited = signal.signal(number, signal.SIG_DFL)  # under nohup these tests inherit SIG_IGN for SIGHUP
    try:
        with interrupts() as seen:
            os.kill(os.getpid(), number)
            assert seen == [number]
            if number != signal.SIGINT:  # a scheduler may ask again while the last iteration is saved
                os.kill(os.getpid(), number)
                assert seen == [number, number]
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, inherited)


def test_ctrl_c_and_the_stop_signals_of_schedulers_are_covered():
    assert {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP} == set(STOP_SIGNALS)


def test_a_run_under_nohup_outlives_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts() as seen:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
            assert seen == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_warm_start_that_was_stopped_exits_with_the_code_of_its_signal(number, capsys):
    with pytest.raises(SystemExit) as ended, interrupts():
        os.kill(os.getpid(), number)
        raise KeyboardInterrupt  # as the training of a model inside a run does, once it was asked to stop
    assert ended.value.code == 128 + number
    assert capsys.readouterr().err == "interrupted; what had been saved is kept\n"


@pytest.mark.parametrize(
    ("error", "is_shown"), [(OSError(28, "No space left on device"), False), (KeyError("x"), True)]
)
def test_a_thread_that_met_a_full_disk_prints_no_traceback(capsys, error, is_shown):
    report_thread(threading.ExceptHookArgs((type(error), error, None, threading.current_thread())))
    assert (type(error).__name__ in capsys.readouterr().err) == is_shown


def test_a_sigterm_decides_the_exit_code_whatever_error_its_exit_meets():
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended, ended_by_sigterm():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                raise KeyError("half-way through a change")
        assert ended.value.code == 128 + signal.SIGTERM
        with pytest.raises(KeyError), ended_by_sigterm():
            raise KeyError("no signal came")
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("folder", "mode"),
    [
        ("outputs/12-00", RunMode.RUN),
        ("sweep/0_algo=ppo,seed=0", RunMode.MULTIRUN),
        ('two words/it\'s 5 % (a, "b")', RunMode.MULTIRUN),
    ],
)
def test_what_a_stopped_run_prints_can_be_typed_as_it_stands(monkeypatch, folder, mode):
    own = ["algo=ppo", "+note='a b'", "resume=old.pt", "seed=0"]
    hydra = SimpleNamespace(mode=mode, overrides=SimpleNamespace(task=own))
    monkeypatch.setattr(HydraConfig, "get", lambda: hydra)
    path = Path(folder) / "checkpoint.pt"
    printed = " ".join(overrides_to_go_on(path))
    typed = subprocess.run(["sh", "-c", f"printf '%s\\n' {printed}"], capture_output=True, text=True, check=True)
    *job, last = OverridesParser.create().parse_overrides(typed.stdout.splitlines())
    assert (last.key_or_group == "resume" and last.value() == str(path)) or str(last.value()) == str(path)
    assert [override.input_line for override in job] == ([] if mode == RunMode.RUN else [own[0], own[1], own[3]])
