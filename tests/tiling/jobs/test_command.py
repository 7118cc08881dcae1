"""What a user reads of a wrong flag or a wrong configuration file, letter by letter."""

import pytest

from tiling.config import TilingConfig
from tiling.jobs.command import parser_for

YAML = "settings.yaml"


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """What a command says of its arguments, and of a file of settings."""
    monkeypatch.chdir(tmp_path)
    parser = parser_for(TilingConfig, "tile-slides", "")
    parser.add_argument("slides")
    parser.add_argument("--out", required=True)

    def run(arguments: str, yaml: str = "") -> str:
        (tmp_path / YAML).write_text(yaml)
        with pytest.raises(SystemExit) as ended:
            parser.parse_args(arguments.split())
        said = capsys.readouterr()
        assert ended.value.code == 2 and said.out == ""
        return said.err

    return run


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("slides --out o --patchpx 256", "no flag --patchpx; close to it is --patch-px"),
        ("slides --out o --patch 256", "no flag --patch; close to it is --patch-px"),
        ("slides --out o --patch-px 1.5", "--patch-px 1.5: expected a whole number"),
        ("slides --out o --mpp half", "--mpp half: expected a number or native"),
        ("slides --out o --grid best", "--grid best: expected fit or origin"),
        ("slides --out", "--out: expected one argument"),
        ("", "SLIDES, --out: not given"),
    ],
)
def test_a_wrong_flag_is_said_in_one_line(refused, arguments, said):
    assert refused(arguments) == f"tile-slides: {said}; all flags are in tile-slides --help\n"


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("patch_pxx: 3", "no setting patch_pxx; close to it is patch_px;"),
        ("mpp: half", "--mpp half: expected a number or native;"),
        ("mpp: [0.5", "--config: while parsing a flow sequence line 1, column 6"),
        ("hello", "--config: expected lines such as key: value, found 'hello';"),
    ],
)
def test_a_wrong_file_of_settings_is_said_in_one_line(refused, yaml, said):
    err = refused(f"slides --out o --config {YAML}", yaml)
    assert err.startswith(f"tile-slides: {said}") and err.count("\n") == 1


def test_help_says_defaults_and_no_type_of_python(capsys):
    with pytest.raises(SystemExit):
        parser_for(TilingConfig, "tile-slides", "").parse_args(["--help"])
    said = capsys.readouterr().out
    assert "(default: 512)" in said and "(default: 0)" in said
    assert not any(noise in said for noise in ("type:", "Literal", "<class", "default: )"))
