"""The `capsnet` command: what was typed becomes one of the commands, and what goes wrong one line."""

import contextlib
import io
import os
import re
import signal
import sys
import threading
import types
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
import tyro

from capsnet import runs
from capsnet.allocator import tune_allocator
from capsnet.commands.bench import Bench
from capsnet.commands.evaluate import Evaluate
from capsnet.commands.explore import Explore
from capsnet.commands.export import Export
from capsnet.commands.figures import Figures
from capsnet.commands.predict import Predict
from capsnet.commands.push import Push
from capsnet.commands.reproduce import Reproduce
from capsnet.commands.train import Train, as_json
from capsnet.errors import InputError, ProcessLostError
from capsnet.recipe import RECIPES, Recipe
from capsnet.signals import ending_signals
from capsnet.streams import drop_unwritten, open_closed, output_lost, tell

Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Predict, tyro.conf.subcommand("predict")]
    | Annotated[Figures, tyro.conf.subcommand("figures")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Push, tyro.conf.subcommand("push")]
    | Annotated[Explore, tyro.conf.subcommand("explore")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
)


ABOUT = "Capsule networks that people can use. capsnet --version says which version this is."


def main(arguments: list[str] | None = None) -> int:
    """The `capsnet` command; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    open_closed()
    tune_allocator()
    for stream in (sys.stdout, sys.stderr):  # a file name that the terminal cannot show is no reason to stop
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        if threading.current_thread() is threading.main_thread():
            for number in ending_signals():
                signal.signal(number, _terminate)
        status = _parse(arguments).run() or 0
        sys.stdout.flush()
    except InputError as error:
        tell(f"capsnet: {_which_process()}{' '.join(str(error).split())}")
        return 2
    except ProcessLostError as error:
        tell(f"capsnet: {_which_process()}{error}")
        return 1
    except KeyboardInterrupt as stop:
        if not _which_process():  # the first of several says it
            tell("")
            tell(f"capsnet: {str(stop) or 'interrupted'}")
        return 130
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        tell("capsnet: there is not enough memory for this; try a smaller --batch-size or --width")
        return 2
    except OSError as error:  # a full disk under the output, a path too long, a folder that may not be read
        return output_lost(error)
    finally:
        drop_unwritten()
    return status


def _out_of_memory(error: Exception) -> bool:
    """PyTorch has a type for a GPU's memory, and for the computer's a sentence."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt("terminated")


def _which_process() -> str:
    """Of several processes that train together, those after the first say who they are."""
    started_here = os.environ.get("CAPSNET_PARENT") == str(os.getppid())
    names = ("RANK", "SLURM_PROCID", *(["LOCAL_RANK"] if started_here else []))
    number = next((os.environ[name] for name in names if name in os.environ), "0")
    return "" if number == "0" else f"process {number}: "


def _parse(arguments: list[str]) -> Command:
    if {"-h", "--help"} & set(arguments[2:]) and arguments[0] != "train":  # tyro leaves out of it what was given before
        arguments = [arguments[0], "--help"]
    recipe = _named_recipe(arguments)
    if arguments[:1] == ["train"] and recipe:
        command = _parse_train(arguments, Train(recipe=recipe))
    else:
        command = _parse_with(Command, arguments, prog="capsnet", description=ABOUT)
    if isinstance(command, Train) and command.resume:
        return _parse_resumed(command, arguments)
    return command


def _named_recipe(arguments: list[str]) -> Recipe | None:
    """What `--recipe` names, looked up before anything is parsed: the other flags change it."""
    for word, following in pairwise([*arguments, ""]):
        flag, equals, value = word.partition("=")
        if flag == "--recipe":
            return RECIPES.get(value if equals else following)
    return None


def _parse_train(arguments: list[str], defaults: Train) -> Train:
    return _parse_with(Train, arguments[1:], prog="capsnet train", default=defaults)


def _parse_with(kind: Any, arguments: list[str], **options: Any) -> Any:
    """tyro's answer to wrong flags is a box of several lines; ours is one line, like for any other wrong input."""
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(kind, args=arguments, config=(tyro.conf.FlagCreatePairsOff,), **options)
    except SystemExit as stop:
        if stop.code != 2:
            sys.stdout.flush()  # help
            raise
        raise InputError(
            f"{_gist(told.getvalue())} ({_help_command(arguments, **options)} shows what there is)"
        ) from None


def _help_command(arguments: list[str], prog: str, **_: Any) -> str:
    """What to type to see the flags of the command that was typed."""
    typed = [part.name for each in get_args(Command) for part in get_args(each)[1:] if part.name in arguments[:1]]
    return " ".join([prog, *typed, "--help"])


def _gist(box: str) -> str:
    """The first paragraph in tyro's box, and its first suggestion if there is one."""
    box = re.sub(r"\x1b\[[0-9;]*m", "", box)  # colours, on a terminal
    title = 1 if box.startswith("╭") else 2  # lines; without UTF-8 there is no border, but a rule below the title
    lines = [line.strip("│ ") for line in box.splitlines()[title:]]
    rules = [number for number, line in enumerate(lines) if not line.strip("─-╰╯")] or [len(lines)]
    gist = lines[: rules[0]]
    suggested = lines[rules[0] + 1 : rules[1]][:2] if len(rules) > 1 else []
    if suggested and suggested[0].startswith(("Perhaps you meant", "Available")):
        gist[-1] += "."
        gist += suggested
    return " ".join(gist)


def _parse_resumed(command: Train, arguments: list[str]) -> Train:
    """A resumed run keeps its settings: they come from its config, and a flag that says otherwise is refused."""
    if command.out is None:
        raise InputError("--resume needs the run to go on with: --out RUN")
    saved = runs.read_config(command.out).get("command")
    if not isinstance(saved, dict) or not saved:
        raise InputError(
            f"{command.out} was not started by `capsnet train`; go on where it was started, with the same model, data "
            f"and recipe: capsnet.fit(…, out={str(command.out)!r}, resume=True)"
        )
    if "reproduce" in saved:
        raise InputError(
            f"{command.out} is a run of `capsnet reproduce`; go on with: {saved.get('command', 'the same command')}"
        )
    settings = _saved_settings(saved, command.out / runs.CONFIG)
    # As defaults, so that the flags given now override what was saved and can be seen to differ.
    again = _parse_train(arguments, settings)
    given, kept = _flags(again), _flags(settings)
    for flag in given:
        if flag != "--device" and given[flag] != kept[flag]:
            raise InputError(f"a resumed run keeps its settings, and {flag} would change them; leave it out")
    return again


def _flags(command: Train) -> dict[str, Any]:
    """What each flag says that a run's config records."""
    values = as_json(command)
    values |= values.pop("recipe")
    values |= {"recipe": values.pop("based_on"), "no_decoder": values.pop("decoder")}
    return {f"--{name.replace('_', '-')}": value for name, value in values.items()}


def _saved_settings(saved: Mapping[str, Any], path: Path) -> Train:
    """What a run's config records, which may have been edited since. Raises `InputError` unless all of it fits."""
    hints = get_type_hints(Train)
    for name, value in saved.items():
        if name != "recipe" and name in hints and not _fits(value, hints[name]):
            raise InputError(f"{path} is damaged or of another version: {name} cannot be {value!r}")
    try:
        pairs = {name: tuple(value) for name, value in saved.items() if isinstance(value, list)}
        return Train(**{**saved, **pairs, "recipe": Recipe(**saved["recipe"])})
    except (TypeError, KeyError) as error:
        raise InputError(f"{path} is damaged or of another version: {str(error).splitlines()[0]}") from None


def _fits(value: object, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(kind))
    if get_origin(kind) in (Union, types.UnionType):
        return any(_fits(value, each) for each in get_args(kind))
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        return isinstance(value, list) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)
