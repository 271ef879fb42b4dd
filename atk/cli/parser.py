"""The command-line parser: one spelling of option names, and errors in one line."""

import itertools
import re
import sys
from argparse import Action, HelpFormatter
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, NoReturn, get_origin

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from atk.cli.exit_codes import MISTAKE

_OPTION = re.compile(r"(?<![\w-])--[A-Za-z][\w.-]*")
_WRONG_TYPE = re.compile(r'Parser key "([^"]+)"(?: element \d+)?: (.*?)\.? (?:Got value|Given value): (.*)')
_OTHER_KEY = re.compile(r'Parser key "([^"]+)": (.*)')
_WRONG_CHOICE = re.compile(r"argument (\S+): invalid choice: (.*) \(choose from (.*)\)")
_OPTIONAL_CHOICES = re.compile(r"(?:Optional|Union)\[((?:\w+, )?)Literal\[([^\]]*)\](?:, null)?\]")
_TYPE_NAMES = {"NoneType": "null", "tuple": "list"}
_MISSING = re.compile("the following arguments are required: (.*)")
_NO_SUBCOMMAND = re.compile(r'expected "([\w.]+)" to be one of \{.*\}, but it was not provided\.')


class _HelpFormatter(DefaultHelpFormatter):
    """Does not repeat the choices of an option as its type."""

    def _get_type_str(self, action: Action) -> str | None:
        if get_origin(getattr(action, "_typehint", None)) is Literal:
            return None
        text = super()._get_type_str(action)
        return text and _OPTIONAL_CHOICES.sub(lambda match: match[1] + match[2].replace("'", "") + ", or null", text)


class Parser(ArgumentParser):
    """Shows option names with hyphens and reports errors in one line.

    Args:
        prog: name of the command, such as `"atk train"`.
        description: what the command does.
        usage: replaces the usage line, which otherwise lists all options.
        version: printed by `--version`; None adds no such option.

    Attributes:
        config_file: file given by `--config` on the command line, shared by all parsers.
    """

    config_file: ClassVar[str | None] = None

    def __init__(self, prog: str, description: str, usage: str | None = None, version: str | None = None):
        super().__init__(
            prog=prog, description=description, usage=usage, version=version, formatter_class=_HelpFormatter
        )

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        """The help text, in which option names are spelled with hyphens."""
        return _with_hyphens(super().format_help(formatter))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Write one line to stderr and exit with code 2."""
        text = " ".join(message.split())
        parser = self._at_fault(text)
        place = "" if self.config_file is None else f", on the command line or in {self.config_file}"
        sys.stderr.write(f"{parser.prog}: {parser._one_line(text)}{place} (see {parser.prog} --help)\n")
        sys.exit(MISTAKE)

    def subcommand(self, name: str) -> "Parser":
        """The parser of a subcommand."""
        assert self._subcommands_action is not None
        return self._subcommands_action.choices[name]

    def leaf(self, argv: list[str]) -> "Parser":
        """The parser of the innermost subcommand at the start of a command line."""
        action = self._subcommands_action
        if action is None or not argv or argv[0] not in action.choices:
            return self
        return action.choices[argv[0]].leaf(argv[1:])

    def unknown_settings(self, settings: Mapping[str, object], group: str = "") -> Iterator[str]:
        """The settings of a configuration file that are no options of this parser."""
        for name, value in settings.items():
            key = f"{group}{name}"
            is_group = any(option.startswith(f"--{key}.") for option in self._option_string_actions)
            if is_group and isinstance(value, Mapping):
                yield from self.unknown_settings(value, f"{key}.")
            elif f"--{key}" not in self._option_string_actions:
                yield key

    def options_first(self, argv: list[str]) -> list[str]:
        """The command line with its options in front: argparse ends a list of words at the first option behind it.

        Only for a parser whose options take one value or none. Everything after `--` stays where it is.
        """
        end = argv.index("--") if "--" in argv else len(argv)
        options: list[str] = []
        words: list[str] = []
        rest = iter(argv[:end])
        for word in rest:
            (options if word.startswith("--") else words).append(word)
            if word.startswith("--") and "=" not in word and self._takes_value(word):
                options += itertools.islice(rest, 1)
        return [*options, *words, *argv[end:]]

    def _takes_value(self, option: str) -> bool:
        """Whether an option, perhaps abbreviated, is followed by a value."""
        names = [name for name in self._option_string_actions if name.startswith(option)]
        name = option if option in names or not names else names[0]
        return name in names and self._option_string_actions[name].nargs != 0

    def _at_fault(self, text: str) -> "Parser":
        """The parser of the subcommand that an error is about."""
        match = _MISSING.fullmatch(text) or _NO_SUBCOMMAND.fullmatch(text)
        names = match[1].split(", ")[0].split(".")[:-1] if match else []
        parser = self
        for name in names:
            if parser._subcommands_action is None or name not in parser._subcommands_action.choices:
                break
            parser = parser._subcommands_action.choices[name]
        return parser

    def _one_line(self, text: str) -> str:
        if match := _WRONG_TYPE.fullmatch(text):
            key, reason, value = match.groups()
            return f"{self._argument(key)} must be {_wanted(reason)}, got {value!r}"
        if match := _WRONG_CHOICE.fullmatch(text):
            name, value, choices = match.groups()
            return f"{_with_hyphens(name)} must be one of {choices}, got {value}"
        if match := _OTHER_KEY.fullmatch(text):
            return f"{self._argument(match[1])}: {match[2]}"
        if match := _MISSING.fullmatch(text):
            return f"missing arguments: {', '.join(map(self._argument, match[1].split(', ')))}"
        if _NO_SUBCOMMAND.fullmatch(text) and self._subcommands_action is not None:
            return f"choose one of {', '.join(self._subcommands_action.choices)}"
        return _with_hyphens(text)

    def _argument(self, key: str) -> str:
        """An argument as the user writes it, from its key, which may begin with names of subcommands."""
        keys = [key.split(".", count)[-1] for count in range(key.count(".") + 1)]
        option = next((f"--{key}" for key in keys if f"--{key}" in self._option_string_actions), None)
        return keys[-1] if option is None else _with_hyphens(option)


def _wanted(reason: str) -> str:
    """What jsonargparse expected, in words."""
    types = [_TYPE_NAMES.get(name, name) for name in dict.fromkeys(re.findall(r"Expected a <class '(\w+)'>", reason))]
    if match := re.search(r"typing\.Literal\[(.*?)\]", reason):
        others = [f"of type {name}, or " for name in types if name != "null"]
        return f"{''.join(others)}{'one of ' if ',' in match[1] else ''}{match[1]}"
    if types:
        return "of type " + " or ".join(types)
    return f"valid ({reason})"


def _with_hyphens(text: str) -> str:
    return _OPTION.sub(lambda match: match[0].replace("_", "-"), text)


def with_underscores(argv: list[str]) -> list[str]:
    """The command line with option names spelled as the parser knows them: `--batch-size=64` -> `--batch_size=64`.

    Values stay as they are, and so does everything after `--`.
    """
    end = argv.index("--") if "--" in argv else len(argv)
    return [_name_with_underscores(word) for word in argv[:end]] + argv[end:]


def _name_with_underscores(word: str) -> str:
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value if _OPTION.fullmatch(name) else word


def flag_value(argv: list[str], name: str) -> str | None:
    """The value of an option, before the command line is parsed."""
    words = [part for word in argv for part in (word.split("=", 1) if word.startswith(f"{name}=") else [word])]
    return next((value for flag, value in itertools.pairwise(words) if flag == name), None)
