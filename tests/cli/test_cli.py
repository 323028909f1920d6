"""The command line as a person or a program uses it: a process, its output and its exit code."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import processes
import pytest
import torch
import typer
from tiny import CALIBRATION, PREPROCESS, encoded, picture, tiny_backbone, tiny_network, write_corpus
from typer.testing import CliRunner

import clipmole
from clipmole.cli import app
from clipmole.cli.options import PrecisionChoice, detector_loader, name_backbones, name_scorers
from clipmole.cli.render import rate
from clipmole.inference import pytorch
from clipmole.inference.detector import Detector
from clipmole.models.adapter import save_adapter
from clipmole.models.backbone import save_tower
from clipmole.plumbing.text import unescaped


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments that name a tiny detector."""
    folder = tmp_path_factory.mktemp("detector")
    backbone = tiny_backbone()
    save_tower(backbone.tower, folder / "tiny", torch.float32)
    save_adapter(folder / "mine", tiny_network(backbone), backbone, PREPROCESS, CALIBRATION)
    return ["--detector", str(folder / "mine"), "--backbone", str(folder / "tiny")]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three images, one of them in a folder below, and a text file."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "a.b.PNG").write_bytes(encoded(picture(0)))
    (folder / "sub.dir").mkdir()
    (folder / "sub.dir" / "b.JPeG").write_bytes(encoded(picture(1), "JPEG"))
    (folder / "c [1].webp").write_bytes(encoded(picture(2), "WebP"))
    (folder / "notes.txt").write_text("not an image")
    return folder


def run(*arguments: str, stdin: bytes = b"", cwd: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "100"}
    return processes.clipmole(*arguments, stdin=stdin, cwd=cwd, environment=environment)


def json_lines(result: subprocess.CompletedProcess[bytes]) -> list[dict[str, object]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_a_folder_as_json_lines_in_a_fixed_order(detector: list[str], photos: Path) -> None:
    result = run("detect", str(photos), "--json", *detector)
    assert result.returncode == 0, result.stderr
    rows = json_lines(result)
    assert [os.path.relpath(str(row["source"]), photos) for row in rows] == ["a.b.PNG", "c [1].webp", "sub.dir/b.JPeG"]
    expected = Detector(tiny_network(), PREPROCESS).score([picture(0)])[0]
    assert rows[0]["logit"] == pytest.approx(float(expected), abs=2e-5)
    assert rows[0]["verdict"] in {"real", "uncertain", "ai_generated"}
    assert "\r" not in result.stdout.decode()


def test_every_way_to_name_an_image_gives_the_same_logit(detector: list[str], photos: Path) -> None:
    path = photos / "a.b.PNG"
    by_path = run("detect", str(path), "--json", *detector)
    by_pattern = run("detect", "*.b.PN[G]", "--json", *detector, cwd=photos)
    by_stdin = run("detect", "-", "--json", *detector, stdin=path.read_bytes())
    by_list = run("detect", "--list", "-", "--json", *detector, stdin=f"{path}\n\n".encode())
    by_nul = run("detect", "--list", "-", "--json", *detector, stdin=f"{path}\0".encode())
    results = [by_path, by_pattern, by_stdin, by_list, by_nul]
    assert [result.returncode for result in results] == [0] * 5
    assert len({json_lines(result)[0]["logit"] for result in results}) == 1
    assert json_lines(by_stdin)[0]["source"] == "<bytes>"


def test_a_list_on_stdin_is_scored_as_it_comes(detector: list[str], photos: Path) -> None:
    """The first result is there before the list ends."""
    command = [sys.executable, "-P", "-m", "clipmole.cli", "detect", "--list", "-", "--json", *detector]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for name in ("a.b.PNG", "absent.png", "c [1].webp"):
            process.stdin.write(f"{photos / name}\n".encode())
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["source"] == str(photos / name)
        process.stdin.write(b"-\n")
        process.stdin.close()
        assert "stdin is the list itself" in json.loads(process.stdout.readline())["error"]["message"]
        assert process.wait() == 1


def test_ctrl_c_ends_a_wait_for_stdin(detector: list[str], photos: Path) -> None:
    # What a shell starts in the background ignores SIGINT, and so does what that starts.
    heed = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"import signal, clipmole.cli; {heed}; clipmole.cli.main()"
    command = [sys.executable, "-P", "-c", program, "detect", "--list", "-", "--json", *detector]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{photos / 'a.b.PNG'}\n".encode())
        process.stdin.flush()
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.wait(20)
        assert process.stderr is not None
        errors = process.stderr.read()
        assert b"Fatal" not in errors
        assert process.returncode in (130, 1, -signal.SIGINT), errors


@pytest.mark.parametrize("workers", ["0", "3"])
def test_workers_change_no_number_and_timings_say_where_the_time_went(
    workers: str, detector: list[str], photos: Path
) -> None:
    result = run("detect", str(photos), "--json", "--timings", "--workers", workers, "--batch-size", "2", *detector)
    expected = Detector(tiny_network(), PREPROCESS, workers=0).score([picture(0), encoded(picture(2), "WebP")])
    assert [row["logit"] for row in json_lines(result)[:2]] == pytest.approx(expected.tolist(), abs=2e-5)
    remark = result.stderr.decode()
    found = re.search(
        r"Seconds: (\S+) imports, (\S+) loading the detector, (\S+) for 3 inputs, of which (\S+) in", remark
    )
    assert found, remark
    assert all(0 <= float(seconds) < 100 for seconds in found.groups())
    assert float(found[4]) <= float(found[3]) + 0.01
    assert f"in {'no' if workers == '0' else workers} threads" in remark


@pytest.mark.parametrize(
    ("slow", "asked", "said"), [(True, "bfloat16", 1), (False, "bfloat16", 0), (True, "float32", 0)]
)
def test_a_slow_bfloat16_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], slow: bool, asked: str, said: int
) -> None:
    monkeypatch.setattr(pytorch, "bfloat16_is_slow", lambda _device: slow)
    detector_loader("embedded", None, "cpu", PrecisionChoice(asked), None, None)
    assert capsys.readouterr().err.count("this processor is slow in bfloat16; leave out --precision") == said


def test_a_file_with_brackets_in_its_name_is_that_file(detector: list[str], photos: Path) -> None:
    result = run("detect", "c [1].webp", "--json", *detector, cwd=photos)
    assert [row["source"] for row in json_lines(result)] == ["c [1].webp"]


def test_bad_inputs_fail_alone(detector: list[str], photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.jpg").write_bytes(encoded(picture(0), "JPEG")[:200])
    inputs = [str(tmp_path / "absent.png"), str(tmp_path / "empty"), "nothing*.jpg", str(tmp_path / "broken.jpg")]
    result = run("detect", *inputs, str(photos / "a.b.PNG"), "--json", *detector)
    assert result.returncode == 1
    rows = json_lines(result)
    assert [row.get("error", {}).get("code") for row in rows[:4]] == ["not_found"] * 3 + ["unreadable"]  # type: ignore[attr-defined]
    assert "logit" in rows[4]
    assert result.stderr.decode().rstrip().endswith("4 of 5 inputs could not be scored.")
    assert "Traceback" not in result.stderr.decode()


def test_the_table_for_people(detector: list[str], photos: Path, tmp_path: Path) -> None:
    result = run("detect", str(photos), str(tmp_path / "absent.png"), *detector)
    assert result.returncode == 1
    lines = result.stdout.decode().splitlines()
    assert len(lines) == 4
    for line in lines[:3]:
        assert line.startswith(("likely photograph", "uncertain", "likely AI-generated"))
        assert " % AI  " in line  # 18 % alone is read as 18 % photograph
    assert lines[3].startswith("not scored")
    assert "absent.png: no such file" in lines[3]
    remarks = result.stderr.decode()
    rule = "Above 70 % it is called AI-generated, below 30 % a photograph, between them uncertain."
    assert "AI: probability of being AI-generated, by " in remarks
    assert rule in remarks
    assert "not a proof" in remarks
    if any(line.startswith("uncertain") for line in lines):
        assert "Find the original file" in remarks


def test_verdicts_without_percentages(detector: list[str], photos: Path) -> None:
    result = run("detect", str(photos), "--labels-only", *detector)
    lines = result.stdout.decode().splitlines()
    assert len(lines) == 3
    for line in lines:
        assert line.startswith(("likely photograph", "uncertain", "likely AI-generated"))
        assert "% AI" not in line
    assert "70 %" not in result.stderr.decode()
    refused = run("detect", str(photos), "--labels-only", "--json", *detector)
    assert refused.returncode == 2
    assert "--labels-only is for the table" in refused.stderr.decode()


def test_csv_has_one_row_an_input(detector: list[str], photos: Path, tmp_path: Path) -> None:
    result = run("detect", str(photos), str(tmp_path / "absent, really.png"), "--csv", *detector)
    rows = list(csv.DictReader(io.StringIO(result.stdout.decode())))
    assert len(rows) == 4
    assert float(rows[0]["probability"]) == pytest.approx(CALIBRATION.probability(float(rows[0]["logit"])))
    assert rows[3]["source"].endswith("absent, really.png")
    assert (rows[3]["error_code"], rows[3]["logit"]) == ("not_found", "")


def test_tiles_come_with_their_places(detector: list[str], photos: Path) -> None:
    row = json_lines(run("detect", str(photos / "a.b.PNG"), "--json", "--tiles", *detector))[0]
    assert len(row["tile_logits"]) == len(row["tile_boxes"]) == row["tiles"]  # type: ignore[arg-type]


def test_an_uncalibrated_detector_gives_no_verdict(tmp_path: Path, photos: Path) -> None:
    backbone = tiny_backbone()
    save_tower(backbone.tower, tmp_path / "tiny", torch.float32)
    save_adapter(tmp_path / "raw", tiny_network(backbone), backbone, PREPROCESS)
    names = ["--detector", str(tmp_path / "raw"), "--backbone", str(tmp_path / "tiny")]
    result = run("detect", str(photos / "a.b.PNG"), *names)
    assert result.returncode == 0
    assert result.stdout.decode().startswith("not calibrated")
    assert "is not calibrated: a higher score means" in result.stderr.decode()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["detect"], "no images"),
        (["detect", "--list", "-"], "no images"),
        (["detect", "x.png", "--json", "--csv"], "exclude each other"),
        (["detect", "x.png", "--tiles"], "--tiles needs --json"),
        (["detect", "-", "-"], "stdin can be read only once"),
        (["detect", "-", "--list", "-"], "stdin can be read only once"),
        (["detect", "--list", "absent.txt"], "absent.txt: cannot be read"),
        (["detect", "x.png", "--detector", "no-such"], "no-such: no such detector"),
        (["detect", "x.png", "--detector", "vit-l-14"], "is a backbone, not a detector"),
        (["train", "--config", "absent.toml", "--out", "x"], "'absent.toml' is neither a TOML file nor one of"),
        (["evaluate", "--data", "absent", "--out", "x"], "there is no such file or folder"),
        (["evaluate", "--data", ".", "--out", "x", "-d", "a/b", "-d", "c/b"], "each needs a name of its own"),
        (["evaluate", "--data", ".", "--out", "x", "--protocol", "no-such"], "protocols 'no-such'"),
        (["push", ".", "someone/thing"], "is not an adapter directory"),
        (["import-univfd", "absent.pth", "--out", "x"], "absent.pth: cannot be read"),
    ],
)
def test_wrong_usage_is_exit_2_and_says_what_is_wrong(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = run(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    error = " ".join(result.stderr.decode().replace("│", " ").split())
    assert message in error
    assert "Traceback" not in error
    assert result.stdout == b""


def test_options_of_train_are_checked_like_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("backbone = 'tiny'\n")
    result = run("train", "--config", "config.toml", "--out", "x", "--seed", "-1", cwd=tmp_path)
    assert result.returncode == 2
    assert "options: seed" in result.stderr.decode()
    assert not (tmp_path / "x").exists()


def test_version_and_help() -> None:
    assert run("--version").stdout.decode() == f"clipmole {clipmole.__version__}\n"
    for command in (
        [],
        ["detect"],
        ["train"],
        ["evaluate"],
        ["calibrate"],
        ["push"],
        ["import-univfd"],
        ["compare"],
        ["presets"],
    ):
        result = run(*command, "--help")
        assert result.returncode == 0
        assert b"Usage" in result.stdout


@pytest.mark.parametrize("group", ["scan", "provenance"])
def test_a_group_that_is_a_command_too_is_called_by_its_name(group: str) -> None:
    result = CliRunner().invoke(app, [group, "--nonsense"], prog_name="clipmole")
    assert result.exit_code == 2
    assert f"Usage: clipmole {group} [OPTIONS]" in result.output
    assert f"'clipmole {group} --help'" in result.output


def test_a_detector_is_named_by_an_equals_sign_unless_its_path_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rank=4" / "best").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert name_scorers(["mine=rank/best", "rank=4/best"]) == {"mine": "rank/best", "best": "rank=4/best"}


@pytest.mark.parametrize("words", [["scan", ".", "--out", ""], ["train", "--data=", "--out", "x"], ["detect", ""]])
def test_an_empty_argument_does_not_mean_the_current_folder(words: list[str], tmp_path: Path) -> None:
    result = run(*words, cwd=tmp_path)
    before = {"scan": "--out", "train": "--data", "detect": "detect"}[words[0]]
    assert result.returncode == 2
    assert result.stderr.decode() == (
        f"clipmole: the argument after {before} is empty; is a variable of the shell unset?\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("group", [[], ["data"], ["benchmark"], ["scan"]])
def test_help_says_the_whole_of_what_each_command_does(group: list[str]) -> None:
    listed = run(*group, "--help").stdout.decode()
    assert "..." not in listed.partition("Commands:")[2]


def test_every_command_stands_in_the_help_with_its_first_sentence() -> None:
    listed = " ".join(run("--help").stdout.decode().split())
    command = typer.main.get_command(app)
    for name, each in command.commands.items():  # type: ignore[attr-defined]
        sentence = " ".join((each.help or "").split("\n\n")[0].split()).partition(". ")[0].rstrip(".")
        assert f"{name} {sentence}" in listed


def test_every_option_says_what_it_is() -> None:
    waiting = [typer.main.get_command(app)]
    while waiting:
        command = waiting.pop()
        waiting += getattr(command, "commands", {}).values()
        for parameter in command.params:
            said = getattr(parameter, "help", None) or ""
            assert len(said) >= 10, f"{command.name} {parameter.name}: {said!r}"
            assert not said.startswith(("Of ", "In ", "Instead")), f"{command.name} {parameter.name}: {said!r}"


def test_no_number_with_a_fraction_is_infinite() -> None:
    """The library checks the rest, which are shares."""
    waiting, unbounded = [typer.main.get_command(app)], set()
    while waiting:
        command = waiting.pop()
        waiting += getattr(command, "commands", {}).values()
        for name, hint in get_type_hints(command.callback, include_extras=True).items() if command.callback else ():
            kind, *info = get_args(hint) or (hint,)
            if kind in (float, float | None) and info[0].max is None:
                unbounded.add(name)
    assert unbounded == {"sample", "false_alarm", "miss", "level", "density"}


def test_shells_are_offered_completion() -> None:
    environment = os.environ | {"_CLIPMOLE_COMPLETE": "complete_bash", "COMP_WORDS": "clipmole ca", "COMP_CWORD": "1"}
    program = "import sys; sys.argv[0] = 'clipmole'; from clipmole.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
    assert result.stdout.decode().split() == ["calibrate"]
    assert "--install-completion" in run("--help").stdout.decode()


@pytest.fixture
def odd_names(tmp_path: Path) -> list[bytes]:
    """Names of images that no terminal should be given as they are, all in the folder of the test."""
    names = [b"a.jpg\nlikely photograph 1 % evil.png", b"caf\xe9.png", b"\x1b[31mred.png", b"\\udce9.png", b"=cmd.png"]
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(encoded(picture(0)))
    return sorted(names)


@pytest.mark.parametrize("kind", ["table", "--json", "--csv"])
def test_odd_names_cost_nothing_and_come_back(
    kind: str, odd_names: list[bytes], detector: list[str], tmp_path: Path
) -> None:
    (tmp_path / "broken\n.png").write_bytes(b"x")
    given = [*map(os.fsdecode, odd_names), "broken\n.png", "absent\nlikely photograph.png"]
    result = run("detect", *given, *([] if kind == "table" else [kind]), *detector, cwd=tmp_path)
    assert result.returncode == 1
    lines = result.stdout.decode().splitlines()
    if kind == "--json":
        shown = [json.loads(line)["source"] for line in lines]
    elif kind == "--csv":
        shown = [row["source"] for row in csv.DictReader(lines)]
        assert shown[odd_names.index(b"=cmd.png")] == "'=cmd.png"
        shown = [name.removeprefix("'") for name in shown]
    else:
        shown = [
            re.sub(r"^(?:likely \S+|uncertain|not scored) +(?:\d+ % AI)? *(?:seen +\S+ %)? *", "", line)
            for line in lines
        ]
        shown = [line.partition(": ")[0] for line in shown]
    assert [unescaped(name) for name in shown] == given
    assert not set(result.stdout + result.stderr) & set(b"\r\x1b")
    assert not any(line.startswith("likely") for line in result.stderr.decode().splitlines())


def test_a_folder_with_odd_names_is_scored_whole(odd_names: list[bytes], detector: list[str], tmp_path: Path) -> None:
    result = run("detect", ".", "--json", *detector, cwd=tmp_path)
    assert result.returncode == 0
    names = [os.fsencode(unescaped(str(row["source"]))) for row in json_lines(result)]
    assert sorted(names) == [b"./" + name for name in odd_names]


def test_odd_names_cost_no_check_and_no_evaluation(detector: list[str], tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9\nlikely photograph")
    for label in (0, 1):
        (tmp_path / odd / f"{label}_{'fake' if label else 'real'}").mkdir(parents=True)
        for i in range(3):
            picture(3 * label + i).save(tmp_path / odd / f"{label}_{'fake' if label else 'real'}" / f"{i}{odd}.png")
    (tmp_path / odd / "0_real" / f"broken{odd}.png").write_bytes(b"x")
    checked = run("data", "check", ".", "--json", cwd=tmp_path)
    unreadable = json.loads(checked.stdout)["unreadable"]
    assert [unescaped(line.partition(": ")[0]) for line in unreadable] == [f"{odd}/0_real/broken{odd}.png"]
    result = run(
        "evaluate", "--data", ".", "--out", "out", "--resamples", "5", "--split", "test", *detector, cwd=tmp_path
    )
    assert result.returncode == 1, result.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert [unescaped(path) for path in report["failed"]] == [f"{odd}/0_real/broken{odd}.png"]
    assert {unescaped(name) for each in report["sets"] for name in each["generators"]} == {odd}
    assert b"\nlikely" not in checked.stdout + result.stdout + result.stderr


def test_an_error_of_an_odd_name_is_one_line(tmp_path: Path) -> None:
    result = run("detect", "x.png", "--detector", "\x1b[31mno\nlikely photograph.such", cwd=tmp_path)
    assert result.returncode == 2
    assert b"\x1b" not in result.stderr
    assert not any(line.startswith(b"likely") for line in result.stderr.splitlines())


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("way", ["file", "stdin"])
def test_a_list_is_read_in_its_encoding(
    encoding: str, way: str, detector: list[str], photos: Path, tmp_path: Path
) -> None:
    text = "".join(f"{photos / name}\r\n" for name in ("a.b.PNG", "c [1].webp")).encode(encoding)
    (tmp_path / "list.txt").write_bytes(text)
    given = "list.txt" if way == "file" else "-"
    result = run("detect", "--list", given, "--json", *detector, stdin=text, cwd=tmp_path)
    assert [Path(str(row["source"])).name for row in json_lines(result)] == ["a.b.PNG", "c [1].webp"], result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["presets"], ["detect", "{}"], ["detect", "{}", "--csv"]])
def test_a_full_disk_behind_stdout_is_one_line(arguments: list[str], detector: list[str], photos: Path) -> None:
    given = [argument.format(photos) for argument in arguments] + (detector if "detect" in arguments else [])
    result = processes.clipmole(*given, stdout="/dev/full")
    assert result.returncode == 2
    assert result.stderr.decode() == "clipmole: standard output: No space left on device\n"


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
def test_a_closed_stdout_is_one_that_goes_nowhere(detector: list[str], photos: Path) -> None:
    words = [sys.executable, "-m", "clipmole", "detect", str(photos), "--json", *detector]
    result = subprocess.run(f"{shlex.join(words)} >&-", shell=True, stderr=subprocess.PIPE, check=False)
    assert (result.returncode, result.stderr) == (0, b"")


def test_a_name_that_stdout_cannot_encode_is_escaped(detector: list[str], tmp_path: Path) -> None:
    (tmp_path / "\u65e5.png").write_bytes(encoded(picture(0)))
    environment = os.environ | {"PYTHONIOENCODING": "latin-1:strict", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "clipmole", "detect", ".", "--json", *detector]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert json_lines(result)[0]["source"] == "./\u65e5.png", result.stderr


def test_a_reader_that_leaves_early_is_no_error(detector: list[str], photos: Path) -> None:
    command = [sys.executable, "-P", "-m", "clipmole.cli", "detect", *[str(photos)] * 5, "--json", *detector]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


def test_train_then_detect(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path / "corpus", {"train": 4, "val": 2, "calibration": 2})
    save_tower(tiny_backbone().tower, tmp_path / "tiny", torch.float32)
    (tmp_path / "config.toml").write_text(
        f"backbone = '{tmp_path / 'tiny'}'\nepochs = 1\nbatch_size = 4\n[preprocess]\ncrop_size = 32\n"
    )
    arguments = ["--config", str(tmp_path / "config.toml"), "--out", str(tmp_path / "out"), "--data", str(manifest)]
    result = run("train", *arguments, "--seed", "3")
    assert result.returncode == 0, result.stderr
    assert result.stdout.decode().strip() == str(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "train.json").read_text())["config"]["seed"] == 3
    names = ["--detector", str(tmp_path / "out"), "--backbone", str(tmp_path / "tiny")]
    scored = run("detect", str(tmp_path / "corpus"), "--json", *names)
    assert scored.returncode == 0, scored.stderr
    assert len(json_lines(scored)) == 16


def test_a_backbone_is_for_every_detector_but_the_embedded_one_or_for_the_one_it_names() -> None:
    specs = {"embedded": "embedded", "a": "runs/a", "b": "runs/b"}
    assert name_backbones([], specs) == {}
    assert name_backbones(["vit=tiny"], specs) == {"a": "vit=tiny", "b": "vit=tiny"}
    assert name_backbones(["tiny", "b=other", "embedded=own"], specs) == {"a": "tiny", "b": "other", "embedded": "own"}
    with pytest.raises(typer.BadParameter, match="small: give NAME=BACKBONE for detectors embedded, a, b"):
        name_backbones(["tiny", "small"], specs)


def test_a_rate_is_said_as_a_person_reads_it() -> None:
    assert [rate(s) for s in (None, 0, 0.25, 1, 12.34)] == ["", "", "4.0 s each", "1.0/s", "12.3/s"]
