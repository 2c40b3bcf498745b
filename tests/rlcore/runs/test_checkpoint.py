"""Files under kills, full disks and bad bytes: old files stay, no temporary file is left, damage is found."""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from rlcore.runs import checkpoint

STATE = {"name": "ppo", "agent": {"network": {"weight": torch.arange(4096.0)}}, "config": {}, "logger": {}}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_twice(folder: Path, number: int) -> None:
    """Replace a file and a folder, each of two numbers that are equal when whole."""

    def fill(path: Path) -> None:
        with open(path, "w") as file:
            file.write(f"{number} ")
            file.flush()
            file.write(f"{number}")

    def fill_folder(path: Path) -> None:
        for name in ("first", "second"):
            (path / name).write_text(str(number))

    checkpoint.atomic(folder / "file", fill)
    checkpoint.atomic_folder(folder / "folder", fill_folder)


def write_forever(folder: Path) -> None:
    for number in itertools.count():
        write_twice(folder, number)


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and POSIX signals")
def test_a_kill_at_any_moment_leaves_whole_files_and_the_next_start_sweeps(tmp_path):
    context = multiprocessing.get_context("fork")
    write_twice(tmp_path, -1)
    for kill in range(80):
        writer = context.Process(target=write_forever, args=(tmp_path,))
        writer.start()
        time.sleep(0.005 + 0.0007 * kill)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        checkpoint.sweep(tmp_path)  # as at the next start
        assert names(tmp_path) == ["file", "folder"]
        first, second = (tmp_path / "file").read_text().split()
        assert first == second
        first, second = ((tmp_path / "folder" / name).read_text() for name in ("first", "second"))
        assert first == second


def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_name_is_after(tmp_path, monkeypatch):
    """Else a power cut could leave the new name without the new content."""
    done = []
    for name in ("fsync", "replace"):
        kept = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *x, name=name, kept=kept: (done.append(name), kept(*x))[1])
    checkpoint.save_json(tmp_path / "a.json", {})
    assert done == ["fsync", "replace", "fsync"]  # the file, its name, the folder's names
    done.clear()
    checkpoint.atomic_folder(tmp_path / "b", lambda folder: [(folder / name).write_text("x") for name in "cd"])
    assert done == ["fsync", "fsync", "fsync", "replace", "fsync"]  # two files, the names within, its own name


def test_the_temporary_file_of_a_living_writer_is_not_swept(tmp_path):
    def fill(temporary: Path) -> None:
        checkpoint.sweep(tmp_path)
        assert temporary.exists()
        temporary.write_text("x")

    checkpoint.atomic(tmp_path / "file", fill)
    assert names(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "x"


def test_a_planted_link_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / f".out.{os.getpid()}").symlink_to(victim)
    (tmp_path / f".out.guess{checkpoint.TEMPORARY}").symlink_to(victim)
    checkpoint.atomic(tmp_path / "out", lambda path: path.write_text("result"))
    assert victim.read_text() == "mine" and (tmp_path / "out").read_text() == "result"
    assert not (tmp_path / "out").is_symlink()


def test_a_folder_comes_back_when_the_swap_fails(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    checkpoint.atomic_folder(folder, lambda path: (path / "weights").write_text("old"))
    replace = os.replace

    def fail_second(source, target):
        if str(source).endswith(checkpoint.TEMPORARY):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(checkpoint.os, "replace", fail_second)
    with pytest.raises(OSError, match="model: not written: No space left on device; what was there before is kept"):
        checkpoint.atomic_folder(folder, lambda path: (path / "weights").write_text("new"))
    assert names(tmp_path) == ["model"] and (folder / "weights").read_text() == "old"


def test_a_kill_between_the_renames_of_a_folder_is_mended(tmp_path):
    (tmp_path / f".model.abc{checkpoint.REPLACED}").mkdir()
    (tmp_path / f".model.abc{checkpoint.REPLACED}" / "weights").write_text("old")
    (tmp_path / f".model.abc{checkpoint.TEMPORARY}").mkdir()
    checkpoint.sweep(tmp_path)
    assert names(tmp_path) == ["model"] and (tmp_path / "model" / "weights").read_text() == "old"


def test_a_full_disk_is_one_line_and_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, STATE)
    before = path.read_bytes()

    def fail(*_):
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0\nstack")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(
        OSError, match=r"checkpoint\.pt: not written: the disk took only a part, is it full\? .*unexpected pos.*kept$"
    ):
        checkpoint.save(path, STATE)
    assert path.read_bytes() == before and names(tmp_path) == ["checkpoint.pt"]


def test_a_flipped_byte_anywhere_among_the_weights_is_seen(tmp_path):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, STATE)
    whole = path.read_bytes()
    assert torch.equal(checkpoint.load(path)["agent"]["network"]["weight"], STATE["agent"]["network"]["weight"])
    weights = whole.index(torch.arange(4096.0).numpy().tobytes())
    for place in (weights, weights + 5000, weights + 4 * 4096 - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(bytes(damaged))
        with pytest.raises(ValueError, match="damaged: the checksum of .* does not match"):
            checkpoint.load(path)


@pytest.mark.parametrize("content", [[1, 2], {}, {"config": {}}, {**STATE, "agent": None}, {**STATE, "name": 3}])
def test_what_is_no_checkpoint_is_said(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="not a checkpoint of this project"):
        checkpoint.load(tmp_path / "x.pt")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path, value):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, STATE)
    before = path.read_bytes()
    bad = {**STATE, "agent": {"network": {"weight": torch.tensor([1.0, value])}, "kl": torch.tensor(math.nan)}}
    with pytest.raises(ValueError, match="agent.network.weight: expected finite weights"):
        checkpoint.save(path, bad)
    assert path.read_bytes() == before
    torch.save(bad, path)
    with pytest.raises(ValueError, match=r"checkpoint\.pt: agent\.network\.weight: expected finite weights"):
        checkpoint.load(path)


@pytest.mark.parametrize("iteration", [-5, "7", 2.0, True])
def test_an_iteration_that_is_no_count_is_refused(tmp_path, iteration):
    path = tmp_path / "c.pt"
    checkpoint.save(path, {**STATE, "agent": {"iteration": iteration}})
    with pytest.raises(ValueError, match=r"c.pt: agent.iteration: expected a whole number from 0, got"):
        checkpoint.load(path)


def test_one_run_a_folder(tmp_path):
    with checkpoint.locked_folder(tmp_path, "another run is writing here"):
        with pytest.raises(ValueError, match=f"^{tmp_path}: taken$"), checkpoint.locked_folder(tmp_path, "taken"):
            pass
    with checkpoint.locked_folder(tmp_path, "the first one has ended"):
        pass


def test_one_writer_a_file(tmp_path):
    path = tmp_path / "log.parquet"
    with checkpoint.only_writer(path):
        with pytest.raises(ValueError, match="log.parquet: another process is writing this file"):
            with checkpoint.only_writer(path):
                pass
        with checkpoint.only_writer(tmp_path / "other.parquet"):
            pass
    with checkpoint.only_writer(path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_whose_file_the_last_holder_removes_is_taken_anew(tmp_path, monkeypatch):
    """A waiter that opened the file just before the holder removed it must not lock the removed file."""
    path, real, opened = tmp_path / "log.parquet", os.open, []

    def open_and_lose(name, *args):
        descriptor = real(name, *args)
        if not opened:
            os.unlink(name)
        opened.append(descriptor)
        return descriptor

    monkeypatch.setattr(os, "open", open_and_lose)
    with checkpoint.only_writer(path):
        assert len(opened) == 2
        assert len(list(tmp_path.iterdir())) == 1


def test_results_are_json_where_a_number_is_undefined(tmp_path):
    checkpoint.save_json(tmp_path / "metrics.json", {"a": [1.5, math.nan], "b": {"c": math.inf}})

    def refuse(constant):
        raise AssertionError(constant)

    read = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=refuse)
    assert read == {"a": [1.5, None], "b": {"c": None}}
