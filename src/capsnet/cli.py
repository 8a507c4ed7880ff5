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
    tune_allocator()
    for stream in (sys.stdout, sys.stderr):  # a file name that the terminal cannot show is no reason to stop
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _terminate)
        status = _parse(arguments).run() or 0
        sys.stdout.flush()
    except InputError as error:
        print(f"capsnet: {_which_process()}{' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except ProcessLostError as error:
        print(f"capsnet: {_which_process()}{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        if not _which_process():  # the first of several says it
            print(f"\ncapsnet: {str(stop) or 'interrupted'}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `capsnet … | head`
        _drop_output()
        return 0
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        print("capsnet: there is not enough memory for this; try a smaller --batch-size or --width", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk under the output, a path too long, a folder that may not be read
        _drop_output()
        print(f"capsnet: {error.strerror or error}{f': {error.filename}' if error.filename else ''}", file=sys.stderr)
        return 2
    return status


def _out_of_memory(error: Exception) -> bool:
    """PyTorch has a type for a GPU's memory, and for the computer's a sentence."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _drop_output() -> None:
    """What is still to be written has nowhere to go; Python would complain of it once more when it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt("terminated")


def _which_process() -> str:
    """Of several processes that train together, those after the first say who they are."""
    number = next((os.environ[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in os.environ), "0")
    return "" if number == "0" else f"process {number}: "


def _parse(arguments: list[str]) -> Command:
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
            raise
        raise InputError(f"{_gist(told.getvalue())} (capsnet --help shows what there is)") from None


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
    for name, value in as_json(again).items():
        if name != "device" and value != as_json(settings)[name]:
            raise InputError(f"a resumed run keeps its settings, and {name} would differ; leave that flag out")
    return again


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
