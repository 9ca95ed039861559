"""Ranks: inline and local ones agree, a dead one ends the others, signals and exit codes travel to the caller."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from moesaic.errors import InputError
from moesaic.flow import launch, signals
from moesaic.flow.launch import RankFailed, Ranks
from moesaic.flow.step import Step

TOY = Path(__file__).parents[1] / "slurm" / "toy"
TRAIN = Step("toy_train", "slurm_toy", "train", distributed=True)
DATA = Step("toy_data", "slurm_toy", "make_data")
SETTINGS: dict[str, Any] = {"steps": 30, "pause": 0.0, "save": 10}


@pytest.fixture(autouse=True)
def outside_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy step is importable here and in the ranks; no allocation is around."""
    monkeypatch.setenv("PYTHONPATH", str(TOY))
    monkeypatch.syspath_prepend(str(TOY))
    for name in [name for name in os.environ if name.startswith("SLURM")]:
        monkeypatch.delenv(name)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))  # put back what an inline run sets


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    launch.run(DATA, {"seed": 1}, {}, tmp_path / "data", Ranks())
    return {"data": tmp_path / "data" / "manifest.json"}


def _weights(out: Path) -> list[float]:
    return json.loads((out / "weights.json").read_text())


def _command(inputs: dict[str, Path], out: Path, settings: dict[str, Any], ranks: int) -> list[str]:
    plan = {
        "settings": settings,
        "inputs": {name: str(path) for name, path in inputs.items()},
        "out": str(out),
    }
    config = out.parent / "toy.json"
    config.write_text(json.dumps({"toy_train": plan}))
    call = [sys.executable, str(TOY / "slurm_toy.py"), "toy_train", "--config", str(config)]
    return [*call, "--ranks-per-node", str(ranks)]


def _wait_for_step(process: subprocess.Popen[Any], out: Path, step: int) -> None:
    path = out / "work" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not path.exists() or f'"step": {step},' not in path.read_text():
        assert process.poll() is None, "the launcher ended early"
        assert time.monotonic() < deadline, "the ranks did not start"
        time.sleep(0.05)


def test_two_local_ranks_agree_with_inline(tmp_path: Path, inputs: dict[str, Path]) -> None:
    launch.run(TRAIN, SETTINGS, inputs, tmp_path / "one", Ranks())
    launch.run(TRAIN, SETTINGS, inputs, tmp_path / "two", Ranks(per_node=2, threads=4))
    assert _weights(tmp_path / "two") == pytest.approx(_weights(tmp_path / "one"), rel=1e-12)
    assert (tmp_path / "two" / "manifest.json").exists()
    for rank in range(2):
        where = json.loads((tmp_path / "two" / "work" / f"rank-{rank}.json").read_text())
        assert (where["rank"], where["world"], where["LOCAL_RANK"]) == (rank, 2, str(rank))
        assert where["master"] == "127.0.0.1"
        assert where["threads"] == "2"
        assert where["CUDA_VISIBLE_DEVICES"] == os.environ.get("CUDA_VISIBLE_DEVICES")
    assert not list((tmp_path / "two" / "work").glob("launch-*"))


def test_visible_devices_are_left_as_they_were(
    tmp_path: Path, inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    launch.run(TRAIN, SETTINGS, inputs, tmp_path / "out", Ranks(per_node=2))
    where = json.loads((tmp_path / "out" / "work" / "rank-1.json").read_text())
    assert where["CUDA_VISIBLE_DEVICES"] == "5,7"


@pytest.mark.parametrize("dead", [0, 1])
def test_a_killed_rank_ends_the_other(tmp_path: Path, inputs: dict[str, Path], dead: int) -> None:
    began = time.monotonic()
    with pytest.raises(RankFailed, match=f"rank {dead} of 2 ended without a word"):
        launch.run(TRAIN, SETTINGS | {"die": [dead, 5]}, inputs, tmp_path / "out", Ranks(per_node=2))
    assert time.monotonic() - began < launch.local.GRACE + 20
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_rank_that_hangs_is_killed_when_the_other_died(
    tmp_path: Path, inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch.local, "GRACE", 1.0)
    settings = SETTINGS | {"die": [1, 5], "hang": [0, 5]}
    began = time.monotonic()
    with pytest.raises(RankFailed, match="without a word"):
        launch.run(TRAIN, settings, inputs, tmp_path / "out", Ranks(per_node=2))
    assert time.monotonic() - began < 30


def test_an_exception_names_its_rank_and_shows_its_traceback(
    tmp_path: Path, inputs: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with pytest.raises(RankFailed, match=r"rank 1 of 2 on .* failed with RuntimeError: told to raise"):
        launch.run(TRAIN, SETTINGS | {"raise": [1, 3]}, inputs, tmp_path / "out", Ranks(per_node=2))
    assert "[rank 1] rank 1 failed" in caplog.text
    assert 'raise RuntimeError("told to raise")' in caplog.text


def test_a_users_mistake_is_one_line_and_exit_code_2(tmp_path: Path, inputs: dict[str, Path]) -> None:
    command = _command(inputs, tmp_path / "out", SETTINGS | {"wrong": True}, 2)
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.count("toy.wrong: the step was told to fail") == 1
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(("ranks", "number"), [(1, signal.SIGUSR2), (2, signal.SIGTERM)])
def test_a_signal_saves_exits_75_and_resume_equals_no_interruption(
    tmp_path: Path, inputs: dict[str, Path], ranks: int, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    settings = SETTINGS | {"steps": 40, "pause": 0.05, "save": 1000}
    process = subprocess.Popen(_command(inputs, out, settings, ranks), stderr=subprocess.PIPE, text=True)
    _wait_for_step(process, out, 3)
    process.send_signal(number)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 75, text
    assert "stopped after step" in text
    assert "Traceback" not in text
    assert 0 < json.loads((out / "work" / "checkpoint.json").read_text())["step"] < 40
    assert not (out / "manifest.json").exists()

    launch.run(TRAIN, settings, inputs, out, Ranks(per_node=ranks))
    launch.run(TRAIN, settings | {"pause": 0.0}, inputs, tmp_path / "straight", Ranks(per_node=ranks))
    assert _weights(out) == _weights(tmp_path / "straight")
    assert json.loads((out / "run.json").read_text())["attempts"] == 2


def test_ranks_save_and_leave_when_the_launcher_is_killed(tmp_path: Path, inputs: dict[str, Path]) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        _command(inputs, out, SETTINGS | {"steps": 2000, "pause": 0.05, "save": 5000}, 2)
    )
    _wait_for_step(process, out, 3)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while (out / "work" / "lease.json").exists():
        assert time.monotonic() < deadline, "the ranks outlived their launcher"
        time.sleep(0.1)
    assert json.loads((out / "work" / "checkpoint.json").read_text())["step"] < 2000


def test_inline_gives_the_signals_back(tmp_path: Path, inputs: dict[str, Path]) -> None:
    before = [signal.getsignal(number) for number in signals.SIGNALS]
    launch.run(TRAIN, SETTINGS, inputs, tmp_path / "out", Ranks())
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before


def test_an_earlier_request_does_not_stop_the_next_step(tmp_path: Path, inputs: dict[str, Path]) -> None:
    signals.request_stop()
    assert signals.stop_requested()
    launch.run(TRAIN, SETTINGS, inputs, tmp_path / "out", Ranks())
    assert not signals.stop_requested()


def test_second_interrupt_from_the_keyboard_ends_at_once() -> None:
    signals.clear()
    signals.install()
    try:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.stop_requested()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signals.restore()
        signals.clear()


JOB = {"SLURM_JOB_ID": "1"}


@pytest.mark.parametrize(
    ("ranks", "environment", "expected"),
    [
        (Ranks(), {}, "inline"),
        (Ranks(), JOB, "inline"),
        (Ranks(per_node=2), {}, "local"),
        (Ranks(per_node=2), JOB, "slurm"),
        (Ranks(nodes=2), JOB, "slurm"),
        (Ranks(per_node=2), JOB | {"SLURM_STEP_ID": "0"}, "local"),
        (Ranks(nodes=2), JOB | {"SLURM_STEP_ID": "4294967290"}, "slurm"),
    ],
)
def test_mode_follows_from_where_we_are(ranks: Ranks, environment: dict[str, str], expected: str) -> None:
    assert launch.mode(TRAIN, ranks, environment) == expected


@pytest.mark.parametrize(
    ("step", "ranks", "environment", "message"),
    [
        (TRAIN, Ranks(nodes=2), {}, "2 nodes need a Slurm allocation"),
        (TRAIN, Ranks(nodes=2), JOB | {"SLURM_STEP_ID": "0"}, "mpi: srun"),
        (DATA, Ranks(per_node=2), {}, "step toy_data runs as one process"),
        (TRAIN, Ranks(nodes=0), {}, "must be at least 1"),
    ],
)
def test_ranks_that_do_not_fit_are_refused(
    step: Step, ranks: Ranks, environment: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        launch.mode(step, ranks, environment)


def test_srun_is_told_everything(tmp_path: Path) -> None:
    command = launch.srun_command(tmp_path, Ranks(2, 4, 8))
    assert {"--nodes=2", "--ntasks=8", "--ntasks-per-node=4", "--cpus-per-task=8"} < set(command)
    assert {"--kill-on-bad-exit=1", "--wait=0", "--export=ALL"} < set(command)
    assert command[-3:] == ["-m", "moesaic.flow.rank", str(tmp_path)]
