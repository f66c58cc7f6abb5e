"""The parser that all scripts share: configuration files, complete lists of errors, exit codes."""

import argparse
from pathlib import Path

import pytest

import preprocess
from utils import cli
from utils.commands import counted
from utils.errors import ExitCode, TooMuchBadData, UserError


def build_parser() -> cli.Parser:
    parser = cli.Parser(prog="script", description="A script.")
    parser.add_config()
    parser.add_argument("--data", type=Path, required=True, help="a folder")
    parser.add_argument("--out", type=Path, required=True, help="another folder")
    parser.add_argument("--batch-size", type=cli.positive_int, default=32, help="a number")
    parser.add_argument("--lr", type=cli.positive_float, default=1e-3, help="a rate")
    parser.add_argument("--dropout", type=cli.fraction, help="a share")
    parser.add_argument("--warm-up", type=cli.non_negative_int, default=0, help="a count")
    parser.add_argument("--mixer", choices=("mamba", "conv"), default="mamba", help="a choice")
    parser.add_argument("--split", nargs="+", help="some names")
    parser.add_argument("--amp", choices=("off", "bf16"), default="bf16", help="another choice")
    parser.add_argument("--seed", "--draw", type=cli.non_negative_int, default=0, help="a flag of two names")
    parser.add_argument("--lists", nargs=2, type=Path, help="two files")
    parser.add_argument("--causal", action=argparse.BooleanOptionalAction, default=False, help="a switch")
    parser.add_argument("--json", action="store_true", help="a switch")
    return parser


def parse(*words: object) -> argparse.Namespace:
    return build_parser().parse_args(["--data", "d", "--out", "o", *map(str, words)])


@pytest.fixture
def config(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "flags.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def refused(capsys):
    """The sentences on stderr of a call that must exit with code 2."""

    def call(words: list[str]) -> list[str]:
        with pytest.raises(SystemExit) as stop:
            build_parser().parse_args([str(word) for word in words])
        assert stop.value.code == ExitCode.BAD_INPUT
        lines = capsys.readouterr().err.splitlines()
        assert lines.pop() == "script --help shows the flags"
        assert all(line.startswith("script: error: ") for line in lines)
        return [line.removeprefix("script: error: ") for line in lines]

    return call


GIVEN = ["--data", "d", "--out", "o"]


def test_file_sets_defaults_and_words_override_them(config):
    path = config("batch-size: 8\nlr: 1e-2\nmixer: conv\nsplit: [a, b]\ncausal: true\njson: true\nwarm_up: 3\n")
    args = parse("--config", path, "--lr", "0.5", "--no-causal")
    assert (args.batch_size, args.lr, args.mixer, args.split) == (8, 0.5, "conv", ["a", "b"])
    assert (args.causal, args.json, args.warm_up) == (False, True, 3)
    assert parse(f"--config={path}").causal is True


def test_words_that_yaml_takes_for_truth_values_and_second_names_are_understood(config):
    args = parse("--config", config("amp: off\ndraw: 3\n"))
    assert (args.amp, args.seed) == ("off", 3)


def test_file_may_give_what_is_required(config):
    args = build_parser().parse_args(["--config", str(config("data: here\nout: there\n"))])
    assert (args.data, args.out) == (Path("here"), Path("there"))


def test_saved_arguments_are_a_configuration_that_gives_them_again(tmp_path):
    for words in ([], ["--json", "--causal", "--split", "x", "--lists", "a", "b", "--dropout", "0.25", "--lr", "3e-5"]):
        args = parse(*words)
        cli.save_config(tmp_path / "saved.yaml", args)
        again = build_parser().parse_args(["--config", str(tmp_path / "saved.yaml")])
        assert vars(again) | {"config": None} == vars(args)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("n-layers: 3", "{path}: there is no flag --n-layers"),
        ("config: other.yaml", "{path}: there is no flag --config"),
        ("help: true", "{path}: there is no flag --help"),
        ("batch-size: many", "{path}: argument --batch-size: must be a whole number, not 'many'"),
        ("batch-size: 1.5", "{path}: argument --batch-size: must be a whole number, not '1.5'"),
        ("batch-size: 0", "{path}: argument --batch-size: must be at least 1, not 0"),
        ("batch-size: [1, 2]", "{path}: argument --batch-size: expected one value, not [1, 2]"),
        ("batch-size: null", "{path}: argument --batch-size: expected a value, not null"),
        ("lists: [a]", "{path}: argument --lists: expected 2 values, not ['a']"),
        ("lr: {a: 1}", "{path}: argument --lr: expected one value, not {{'a': 1}}"),
        ("mixer: gru", "{path}: argument --mixer: invalid choice: 'gru' (choose from"),
        ("causal: 1", "{path}: argument --causal: expected true or false, not 1"),
        ("json: yes please", "{path}: argument --json: expected true or false, not 'yes please'"),
        ("- batch-size", "the configuration {path} must consist of `flag: value` lines"),
        ("lr: [", "the configuration {path} is not YAML: "),
        ("split: 2024-13-01", "the configuration {path} is not YAML: "),
    ],
)
def test_what_a_file_gets_wrong_is_one_sentence(line, sentence, config, refused):
    path = config(line + "\n")
    problems = refused([*GIVEN, "--config", path])
    assert len(problems) == 1
    assert problems[0].startswith(sentence.format(path=path))


def test_missing_file_and_empty_file(config, refused, tmp_path):
    missing = tmp_path / "missing.yaml"
    assert refused([*GIVEN, "--config", missing]) == [
        f"the configuration {missing} cannot be read: No such file or directory"
    ]
    assert parse("--config", config("")) == argparse.Namespace(**vars(parse()) | {"config": config("")})


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--batch-size", "0"], "argument --batch-size: must be at least 1, not 0"),
        (["--batch-size", "two"], "argument --batch-size: must be a whole number, not 'two'"),
        (["--warm-up=-1"], "argument --warm-up: must be at least 0, not -1"),
        (["--seed", str(2**63)], f"argument --seed/--draw: must be at most {2**63 - 1}, not {2**63}"),
        (["--lr", "0"], "argument --lr: must be above 0, not 0"),
        (["--lr", "inf"], "argument --lr: must be a number, not inf"),
        (["--lr", "nan"], "argument --lr: must be a number, not nan"),
        (["--lr", "fast"], "argument --lr: must be a number, not 'fast'"),
        (["--dropout", "1.01"], "argument --dropout: must be at most 1, not 1.01"),
        (
            ["--mixer", "mamab"],
            "argument --mixer: invalid choice: 'mamab' (choose from 'mamba', 'conv'); did you mean mamba?",
        ),
        (["--batch", "3"], "there is no flag --batch; did you mean --batch-size?"),  # an abbreviation of --batch-size
    ],
)
def test_what_a_word_gets_wrong_is_a_sentence(words, sentence, refused):
    assert refused([*GIVEN, *words])[0] == sentence


def test_all_errors_are_shown_at_once(config, refused):
    path = config("n-layers: 3\nbatch-size: many\n")
    problems = refused(["--config", path, "--lr", "-1", "--mixer", "gru", "--color", "red"])
    assert [problem.split(" (")[0] for problem in problems] == [
        f"{path}: there is no flag --n-layers",
        f"{path}: argument --batch-size: must be a whole number, not 'many'",
        "there is no flag --color",
        "argument --lr: must be above 0, not -1",
        "argument --mixer: invalid choice: 'gru'",
        "the following arguments are required: --data, --out",
    ]


def test_contradictions_are_reported_together_and_once(capsys):
    parser = build_parser()
    parser.report([])
    with pytest.raises(SystemExit) as stop:
        parser.report(["--json contradicts --causal", "--lr is too high", "--lr is too high"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "script: error: --json contradicts --causal\nscript: error: --lr is too high\nscript --help shows the flags\n"
    )


def test_contradictions_of_a_subcommand_point_to_its_own_help(tmp_path, capsys):
    import test as test_script

    words = ["embed", "--checkpoint", str(tmp_path), "--out", str(tmp_path / "x"), "--json", "a.wav"]
    with pytest.raises(SystemExit):
        test_script.main(words)
    error, pointer = capsys.readouterr().err.splitlines()
    assert "--out and --json contradict" in error
    assert pointer.endswith(" embed --help shows the flags")


def test_one_thing_is_singular():
    assert [counted(number, "speaker") for number in (0, 1, 2)] == ["0 speakers", "1 speaker", "2 speakers"]


def test_subcommand_takes_its_own_configuration(config, capsys):
    parser = cli.Parser(prog="script")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("one", help="the first")
    one.add_config()
    one.add_argument("--k", type=cli.positive_int, default=1, help="a number")
    assert parser.parse_args(["one", "--config", str(config("k: 5\n"))]).k == 5
    for words, sentence in ((["one", "--k", "x", "--z"], "there is no flag --z"), (["two"], "'two'"), ([], "command")):
        with pytest.raises(SystemExit) as stop:
            parser.parse_args(words)
        assert stop.value.code == 2
        assert sentence in capsys.readouterr().err


def test_an_unknown_subcommand_gets_the_nearest(capsys):
    parser = cli.Parser(prog="script")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in ("evaluate", "embed"):
        commands.add_parser(name, help="a command")
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["evalute"])
    assert stop.value.code == 2
    assert (
        "invalid choice: 'evalute' (choose from evaluate, embed); did you mean evaluate?"
        in capsys.readouterr().err.replace("'evaluate', 'embed'", "evaluate, embed")
    )


def test_help_shows_defaults(capsys):
    with pytest.raises(SystemExit) as stop:
        build_parser().parse_args(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "a number (default: 32)" in text
    assert "a folder --out" in text  # required: no default to show
    assert "a share --warm-up" in text  # no default


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (lambda args: None, 0, ""),
        (lambda args: 7, 7, ""),
        (lambda args: _raise(UserError("the folder is empty")), 2, "error: the folder is empty\n"),
        (lambda args: _raise(TooMuchBadData("9 of 10 are broken")), 3, "error: 9 of 10 are broken\n"),
        (lambda args: _raise(KeyboardInterrupt()), 130, "error: interrupted\n"),
    ],
)
def test_exit_code_and_sentence_of_a_script(body, code, message, capsys):
    assert cli.run(body, argparse.Namespace()) == code
    assert capsys.readouterr() == ("", message)


def test_a_defect_is_not_hidden_as_bad_input():
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda args: 1 // 0, argparse.Namespace())


def test_progress_is_silent_without_a_terminal(capsys):
    assert list(cli.progress(range(3), desc="counting")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def _raise(error: BaseException) -> None:
    raise error


def test_the_listed_backends_are_those_of_the_engine():
    from models.engine import BACKENDS as listed
    from models.engine.backends import BACKENDS

    assert listed == BACKENDS


def test_a_name_that_the_system_refuses_is_a_sentence(capsys):
    """Also beside another problem."""
    with pytest.raises(SystemExit) as stop:
        preprocess.main(["--dataset", "demo", "--heldout-speakers", "a" * 300, "--seed", "-1"])
    said = capsys.readouterr().err
    assert stop.value.code == ExitCode.BAD_INPUT and "--seed" in said
    assert f"argument --heldout-speakers: {'a' * 300}: File name too long\n" in said
