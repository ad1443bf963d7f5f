"""Parses the arguments of a command into a dataclass, with the library tyro.

Each field of the dataclass is an option or a positional argument. The docstring of the field is its
help text. For a wrong argument, the functions raise UserError with a one-line message.
"""

import contextlib
import functools
import io
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, field, fields, is_dataclass, make_dataclass
from difflib import get_close_matches
from itertools import takewhile
from typing import (
    Annotated,
    Any,
    NamedTuple,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import tyro

from ..errors import Stopped, UserError, join_command, suggest_nearest
from .hooks import join_help_lines, listen
from .messages import name_flags, remove_drawing
from .values import REGISTRY, Flag, flat, positional

join_help_lines()

T = TypeVar("T")


_CONFIG = (
    tyro.conf.AvoidSubcommands,
    tyro.conf.UseAppendAction,
    tyro.conf.HelptextFromCommentsOff,  # searching the source code for comments is slow
)
_TEXTS = ("prompt", "stop", "separator", "text")
"""Names of the fields whose value may be empty. Every other value is a name, a path or a number."""


def parse_arguments(
    default: T, args: Sequence[str], prog: str, description: str | None = None
) -> T:
    """Return `default` with the values from `args`. Raises UserError for a wrong argument."""
    kind: Any = type(default)
    options = _list_options(kind, default)
    result = _run_parser(kind, args, prog, options, default=default, description=description)
    return cast(T, result)


def parse_with_defaults(
    kind: type[T], choose_defaults: Callable[[T], tuple[T, str]], args: Sequence[str], prog: str
) -> T:
    """Return a dataclass with the values from `args`. Its defaults depend on some of these values.

    The parser runs twice. The first pass accepts the options of every kind of model, and skips the
    checks of the dataclasses. `choose_defaults` receives the result of the first pass. It returns
    the defaults of the second pass, and the description that the help shows.
    """
    first_kind = _make_first_kind(kind)  # type: ignore[arg-type]
    options = _list_options(first_kind)
    first = _run_parser(first_kind, args, prog, options, default=first_kind(), add_help=False)
    defaults, description = choose_defaults(first)
    return parse_arguments(defaults, ["--help"] if first.help else args, prog, description)


def parse_command(commands: Mapping[str, type[T]], args: Sequence[str], prog: str) -> T:
    """Return the dataclass of the command named in `args`, with the values from `args`."""
    kinds = [Annotated[kind, tyro.conf.subcommand(name)] for name, kind in commands.items()]
    kind = Union[tuple(kinds)]  # type: ignore[valid-type]  # noqa: UP007  a union built at run time
    options = [option for kind in commands.values() for option in _list_options(kind)]
    return cast(T, _run_parser(kind, args, prog, options, commands))


@contextlib.contextmanager
def report_mistakes(kind: type) -> Iterator[None]:
    """Turn a ValueError that names fields of `kind` into a UserError that names their flags."""
    try:
        yield
    except ValueError as error:
        raise UserError(name_flags(str(error), _map_flags(_list_options(kind)))) from None


def _run_parser(
    kind: Any,
    args: Sequence[str],
    prog: str,
    options: Sequence["_Option"],
    commands: Mapping[str, type] | None = None,
    **settings: Any,
) -> Any:
    """Run tyro with these settings and return its result.

    Raises UserError for a wrong argument or an option without effect, and SystemExit after printing
    help.
    """
    args, flags = _join_values(args, options, prog), _map_flags(options)

    def reject(event: Any) -> None:
        error = None
        with contextlib.suppress(Exception):  # other versions of tyro may have other events
            error = _explain_event(event, args, options, commands or (), prog)
        if error:
            raise error

    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), listen(reject):
            result = tyro.cli(
                kind,
                args=args,
                prog=prog,
                registry=REGISTRY,
                config=_CONFIG,
                **settings,
            )
    except ValueError as error:
        raise UserError(name_flags(str(error), flags)) from None
    except Stopped:  # the help cannot be printed
        raise
    except SystemExit as exit:
        if not exit.code:
            raise
    except Exception:  # if tyro fails while it draws a message, still report the message
        pass
    else:
        _require_effect(result, args, flags)
        return result
    if text := remove_drawing(printed.getvalue()):
        raise UserError(text)
    raise UserError(f"cannot understand the arguments; see {prog} --help")


def _require_effect(options: Any, args: Sequence[str], flags: Mapping[str, str]) -> None:
    """Raise UserError if `args` contains an option that has no effect. Defaults are not checked.

    The dataclass `options`, and each dataclass in it, may have a method explain_unused(name). This
    method returns the reason why the option `name` has no effect, or "" if it has an effect.
    """
    given = {arg.partition("=")[0].replace("_", "-") for arg in takewhile("--".__ne__, args)}
    parts = [options, *filter(is_dataclass, vars(options).values())]
    for name in (name for name, flag in flags.items() if flag in given):
        for part in parts:
            if hasattr(part, "explain_unused") and (reason := part.explain_unused(name)):
                raise UserError(f"{flags[name]} has no effect: {reason}; leave the option out")


def _explain_event(
    event: Any,
    args: Sequence[str],
    options: Sequence["_Option"],
    commands: Collection[str],
    prog: str,
) -> UserError | None:
    """Convert an error of tyro to a UserError; return None for an unknown kind of error."""
    match type(event).__name__:
        case "UnrecognizedArgs":
            last = args[args.index("--") :] if "--" in args else ()
            return _explain_unknown(event.tokens, last, options, commands, prog)
        case "MissingSubcommand":
            return UserError(f"{prog} needs a name: use one of {', '.join(commands)}")
        case "BadValue":
            flag = _get_flag(event.argument)
            return UserError(
                f"{flag} needs a value, as in {flag}=VALUE; if the value looks like an option, "
                f"the = is necessary"
            )
        case "InvalidChoice":
            flag, choices = _get_flag(event.argument), ", ".join(event.choices)
            return UserError(f"{flag} is {event.value!r}: it must be one of {choices}")
        case "InstantiationFailure" if event.argument is not None:
            return UserError(f"{_get_flag(event.argument)} {event.message}")
        case "InstantiationFailure":
            return UserError(name_flags(event.message, _map_flags(options)))
    return None


def _get_flag(argument: Any) -> str:
    """Return the flag of a tyro argument, or the placeholder of a positional argument."""
    lowered = argument.lowered
    return str(lowered.metavar if argument.is_positional() else lowered.name_or_flags[-1])


def _explain_unknown(
    tokens: Sequence[str],
    last: Sequence[str],
    options: Sequence["_Option"],
    commands: Collection[str],
    prog: str,
) -> UserError:
    """Return an error that names an unknown argument and suggests similar arguments, if any.

    `last` are the arguments after --, which are not options.
    """
    word = next((token for token in tokens if token.startswith("-") and token not in last), None)
    if word is None and commands:
        known = suggest_nearest(tokens[0], commands) or f"use one of {', '.join(commands)}"
        return UserError(f"there is no {prog.split()[-1]} {tokens[0]!r}: {known}")
    if word is None:
        return UserError(f"unexpected argument {tokens[0]!r}; see {prog} --help")
    flag = word.partition("=")[0].replace("_", "-")
    positionals = [option.flag for option in options if option.has_type(positional)]
    if flag in positionals:
        return UserError(f"there is no option {flag}: give its value without a flag")
    flags = _map_flags(options).values()
    near = [each for each in flags if each.rpartition(".")[2] == flag.lstrip("-")]
    near = near or get_close_matches(flag, flags, n=1, cutoff=0.7)
    if near:
        return UserError(f"there is no option {flag}: did you mean {' or '.join(near)}?")
    advice = f"; if it is not an option: {join_command([*prog.split(), '--', word])}"
    return UserError(f"there is no option {flag}; see {prog} --help" + advice * bool(positionals))


class _Option(NamedTuple):
    """An option, which sets a field of a dataclass or of a nested dataclass."""

    name: str
    flag: str
    type: Any

    def has_type(self, mark: Any) -> bool:
        """Return whether the type of the field is `mark`, or is annotated with it."""
        return mark in (self.type, *get_args(self.type))


def _list_options(kind: Any, default: Any = None, prefix: str = "--") -> list[_Option]:
    """Return the options of a dataclass and of its nested dataclasses.

    The type of a field can be a union of dataclasses. If the field of `default` has a value, only
    the options of that value's class are listed. A boolean field also has the option no_NAME.
    """
    options: list[_Option] = []
    for name, hint in get_type_hints(kind, include_extras=True).items():
        value = getattr(default, name, None)
        children = [type(value)] if is_dataclass(value) else _find_dataclasses(hint)
        inner_prefix = prefix if flat in get_args(hint) else f"{prefix}{name}."
        for child in children:
            options += _list_options(child, value, inner_prefix)
        names = [name] * (not children) + [f"no_{name}"] * (hint is bool)
        options += [_Option(each, prefix + each.replace("_", "-"), hint) for each in names]
    return options


def _map_flags(options: Sequence[_Option]) -> dict[str, str]:
    """Map the names of fields to their flags."""
    return {option.name: option.flag for option in options if not option.has_type(positional)}


def _join_values(args: Sequence[str], options: Sequence[_Option], prog: str) -> list[str]:
    """Join an option to its value with = if the value is empty or begins with a hyphen.

    tyro would read a separate value such as -x as another option. A separate word such as -h or
    --data is always an option, never a value. Raises UserError for an empty value, unless the value
    is a text, such as the prompt.
    """
    positionals = [option.name for option in options if option.has_type(positional)]
    names = {o.flag: o.name for o in options if o.name not in positionals and not o.has_type(bool)}
    end = args.index("--") if "--" in args else len(args)  # all later words are positional
    joined: list[str] = []
    for arg in args[:end]:
        is_option = re.fullmatch(r"-h|--[A-Za-z][\w.-]*(=.*)?", arg, re.DOTALL)
        follows_option = joined and joined[-1].replace("_", "-") in names
        if follows_option and arg[:1] in ("", "-") and not is_option:
            joined[-1] += f"={arg}"
        else:
            joined.append(arg)
        flag, equals, value = joined[-1].partition("=")
        if equals and not value and names.get(flag.replace("_", "-"), "prompt") not in _TEXTS:
            raise UserError(f"{flag} is empty: give a value, or leave the option out")
    joined += args[end:]
    if "" in joined and not set(positionals) & set(_TEXTS):
        raise UserError(f"unexpected argument {''!r}; see {prog} --help")
    return joined


def _find_dataclasses(hint: Any) -> list[Any]:
    """Return the dataclasses in a type hint, which can be a union; [] if there are none."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    return [kind for kind in get_args(hint) or (hint,) if is_dataclass(kind)]


@functools.cache
def _make_first_kind(kind: type) -> Any:
    """Make the dataclass for the first pass, without checks and with an option --help.

    The result is cached, because tyro would parse the same docstrings again for each new class.
    """
    help_flag = Annotated[Flag, tyro.conf.arg(aliases=["-h"])]
    unchecked = _remove_checks(kind)
    return make_dataclass("FirstPass", [("help", help_flag, False)], bases=(unchecked,))


def _remove_checks(*kinds: Any) -> Any:
    """Make a dataclass with the fields of all `kinds`, without checks at any level of nesting."""
    merged: dict[str, tuple[str, Any, Any]] = {}
    for kind in kinds:
        hints = get_type_hints(kind, include_extras=True)
        for each in fields(kind):
            hint, default = hints[each.name], field(default=each.default)
            if each.default_factory is not MISSING:
                default = field(default_factory=each.default_factory)
            if children := _find_dataclasses(hint):
                child = _remove_checks(*children)
                marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
                hint = Annotated[child, *marks] if marks else child
                default = field(default_factory=child)
            merged.setdefault(each.name, (each.name, hint, default))
    return make_dataclass("Unchecked", merged.values(), kw_only=True)
