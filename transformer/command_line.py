"""What `train.py` and `eval.py` share: `--config=FILE[:arm]`, overrides by dotted name, errors in one line."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from transformer.config import (
    STACKS,
    apply_overrides,
    default_config,
    known_fields,
    resolve,
    schema,
    to_flat,
    unknown_field,
)
from transformer.errors import ConfigError, UserError, did_you_mean
from transformer.schema import Config

USAGE_ERROR = 2


@dataclasses.dataclass(frozen=True)
class ConfigFlag:
    """The value of `--config`, resolved.

    Attributes:
      config: the validated config.
      name: the file's stem, without `ablation_`.
      arm: what followed the colon.
    """

    config: Config
    name: str
    arm: str


def define_config_flag() -> None:
    """Defines `--config`; call once, when the script is imported."""
    config_flags.DEFINE_config_file("config", None, "FILE[:arm]: a file with get_config().", lock_config=True)


def parse(argv: list[str], usage: str) -> None:
    """Parses flags, or answers `--help` and exits.

    Raises:
      ConfigError: an unknown flag or config field, or a value that cannot be read.
    """
    if any(argument in ("--help", "-h", "-help", "--helpfull") for argument in argv[1:]):
        print(_help(usage))
        sys.exit(0)
    _check_names(argv[1:])
    try:
        rest = flags.FLAGS(argv)
    except (
        flags.Error,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        OSError,
        SyntaxError,
        ImportError,
    ) as error:
        file = next((a.split("=", 1)[1] for a in argv if a.lstrip("-").startswith("config=")), "")
        loading = "" if isinstance(error, flags.Error) else f"--config={file} could not be loaded: "
        raise ConfigError(_one_line(error, loading)) from error
    if len(rest) > 1:
        raise ConfigError(f"{rest[1]!r} is not a flag; fields are set as --config.field=value.")


def config_from_flag() -> ConfigFlag:
    """The resolved value of `--config`.

    Raises:
      ConfigError: no `--config`, a file that is missing or defines no get_config, or an invalid config.
    """
    flag = flags.FLAGS["config"]
    if flag.value is None:
        raise ConfigError("--config=FILE is required, for example --config=configs/base.py")
    file, _, arm = str(config_flags.get_config_filename(flag)).partition(":")
    try:
        values = flag.value.to_dict()  # a file that could not be loaded says so only now
    except (OSError, AttributeError) as error:
        if not Path(file).exists():
            there = sorted(map(str, Path(file).parent.glob("*.py")))
            hint = did_you_mean(file, there) or " Give a file such as configs/base.py."
            raise ConfigError(f"--config={file} does not exist.{hint}") from error
        problem = _one_line(error.__cause__ or error, f"--config={file} could not be loaded: ")
        raise ConfigError(problem) from error
    stem = Path(file).stem
    return ConfigFlag(resolve(values), stem.removeprefix("ablation_"), arm)


def assignments(texts: Iterable[str], prefix: str = "") -> dict[str, Any]:
    """`["model.norm.kind=rmsnorm", "model.d_model=96"]` -> overrides.

    Args:
      prefix: stands before every field.

    Raises:
      ConfigError: an assignment without `=`.
    """
    known, overrides = known_fields(), {}
    for text in texts:
        path, separator, value = text.partition("=")
        if not separator:
            raise ConfigError(f"{text!r} is not FIELD=VALUE, for example model.norm.kind=rmsnorm")
        path = prefix + path
        try:
            free_text = path in known and known[path].type is str and not known[path].kinds
            overrides[path] = value if free_text else ast.literal_eval(value)
        except (ValueError, SyntaxError):
            overrides[path] = value
    return overrides


def run(main: Callable[[], int], usage: str) -> None:
    """Parses the command line, runs `main` and exits with its code; user errors become one line and exit code 2."""
    try:
        parse(sys.argv, usage)
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    sys.exit(code)


def format_config(config: Config) -> str:
    """Every field that has a meaning, one `field = value` a line."""
    return "\n".join(f"{path} = {value!r}" for path, value in to_flat(config).items())


def _check_names(arguments: list[str]) -> None:
    """Rejects unknown flags and fields with a suggestion, before anything is loaded."""
    known = known_fields()
    has_config = any(a.lstrip("-").split("=")[0] == "config" for a in arguments)
    for argument in arguments:
        if not argument.startswith("-") or argument[1:2].isdigit():  # a negative number is a value
            continue
        name = argument.lstrip("-").split("=")[0]
        field = name.removeprefix("no") if name.startswith("noconfig.") else name
        if field.startswith("config."):
            path = field.removeprefix("config.").split("[")[0]
            if not has_config:
                raise ConfigError(f"--{name} needs --config=FILE before it, for example --config=configs/base.py")
            if path not in known:
                raise unknown_field(path)
        elif field not in flags.FLAGS and field.removeprefix("no") not in flags.FLAGS:
            close = difflib.get_close_matches(field, ["config", "workdir", *flags.FLAGS], n=1)
            hint = f" Did you mean --{close[0]}?" if close else " See --help."
            raise ConfigError(f"There is no flag --{field}.{hint}")


def _one_line(error: BaseException, prefix: str = "") -> str:
    """What went wrong, in one line: our own message if one is behind it, else `prefix` and the last line, which names
    the cause."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if field := re.match(r"flag --config\.([\w.]+)=(.*?): ", text, re.DOTALL):
        try:
            apply_overrides(default_config(), {field[1]: field[2]})
        except ConfigError as ours:
            return str(ours)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    if "get_config() takes 0 positional arguments" in lines[-1]:
        return f"{lines[0].split(': ')[0]}: this config has no arms; leave out what follows the colon."
    return prefix + lines[-1][:400]


def _help(usage: str) -> str:
    lines = [usage, "", "Config fields (set with --config.FIELD=VALUE):"]
    for info in schema():
        kinds = f" {{{', '.join(info.kinds)}}}" if info.kinds else ""
        used_by = f" [only with {info.used_by}]" if info.used_by else ""
        lines.append(f"  {info.path} = {_show(info.default)}\n      {info.help}{kinds}{used_by}")
    for stack in STACKS:
        meaning = f"the same for the {stack} alone; by default as model.FIELD [only with model.family=encoder_decoder]"
        lines.append(f"  model.{stack}.FIELD\n      {meaning}")
    return "\n".join(lines)


def _show(value: Any) -> str:
    return repr(value) if isinstance(value, str) and not value else str(value)
