"""Every study's flags and docstring, as tests/test_cli_help.py checks those of the scripts."""

import pytest
from shown_commands import STUDIES
from test_cli_help import test_docstrings_show_commands_that_parse as check_docstring
from test_cli_help import test_flags_are_kebab_case_and_explained as check_flags
from test_cli_help import test_help_is_prompt_and_imports_nothing_heavy as check_help


@pytest.mark.parametrize("name", STUDIES)
def test_help_and_shown_commands(name, tmp_path, monkeypatch):
    check_help(name)
    check_flags(name)
    check_docstring(name, tmp_path, monkeypatch)
