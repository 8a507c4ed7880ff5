"""Models on the Hugging Face hub, as `hub:OWNER/NAME` or `hub:OWNER/NAME@REVISION`. Needs extra `hub`.

Only the files of a run folder travel; what comes back is JSON and safetensors, and nothing of it is executed.
"""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from capsnet.errors import InputError

PREFIX = "hub:"
FILES = ("config.json", "model.safetensors", "report.json", "metrics.csv")
"""What is fetched; of each, if it is there."""


def is_place(path: str | Path) -> bool:
    """Whether this names a model on the hub rather than a folder."""
    return str(path).startswith(PREFIX)


def fetch(place: str | Path) -> Path:
    """The folder into which a model was downloaded; where that is, `huggingface_hub` decides (HF_HOME).

    What was downloaded before is asked for once more only as to whether it has changed, and does without a network.
    Raises `InputError` if the model is not there, cannot be had, or is no run of ours.
    """
    name, revision = _parts(place)
    library = _library()
    with _telling(place, "fetch"), _bars_on_terminals():
        folder = Path(library.snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    if not (folder / FILES[0]).is_file():
        raise InputError(f"{place} is no model of capsnet: it has no {FILES[0]}")
    return folder


def push(files: Mapping[str, Path | bytes], place: str | Path, *, private: bool = False) -> str:
    """Put files, by their names, on the hub in one commit; returns the address. The model is made if need be.

    With a revision in `place`, onto that branch. Raises `InputError` if the hub cannot be reached or refuses.
    """
    name, revision = _parts(place)
    library = _library()
    operations = [library.CommitOperationAdd(path, content) for path, content in files.items()]
    with _telling(place, "push to"), _bars_on_terminals():
        api = library.HfApi()
        address = str(api.create_repo(name, private=private, exist_ok=True))
        if revision:
            api.create_branch(name, branch=revision, exist_ok=True)
        api.create_commit(name, operations, commit_message="Upload a run of capsnet", revision=revision)
    return address


def _parts(place: str | Path) -> tuple[str, str | None]:
    """OWNER/NAME, and the revision if there is one."""
    name, _, revision = Path(place).as_posix().removeprefix(PREFIX).partition("@")
    if name.count("/") != 1 or name.startswith("/") or name.endswith("/"):
        raise InputError(
            f"{place} names no model on the hub; that is {PREFIX}OWNER/NAME or {PREFIX}OWNER/NAME@REVISION"
        )
    return name, revision or None


def _library():  # the module, or one line that says how to get it
    if importlib.util.find_spec("huggingface_hub") is None:
        raise InputError(f"{PREFIX} needs huggingface_hub; install it with: pip install 'capsnet[hub]'")
    import huggingface_hub

    return huggingface_hub


@contextlib.contextmanager
def _telling(place: str | Path, what: str) -> Iterator[None]:
    """What goes wrong between here and the hub, in one line."""
    from huggingface_hub import errors

    try:
        yield
    except errors.RevisionNotFoundError:
        raise InputError(f"cannot {what} {place}: the model has no such revision") from None
    except errors.RepositoryNotFoundError:
        raise InputError(
            f"cannot {what} {place}: there is no such model, or it is not yours to see; `hf auth login` logs in"
        ) from None
    except errors.HFValidationError:
        raise InputError(f"cannot {what} {place}: the hub has no such names") from None
    except errors.LocalTokenNotFoundError:
        raise InputError(f"cannot {what} {place}: you are not logged in; `hf auth login` logs in") from None
    except errors.HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            raise InputError(
                f"cannot {what} {place}: the hub does not let you; `hf auth login` logs in, with a token that may write"
            ) from None
        raise InputError(f"cannot {what} {place}: {_first_line(error)}") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError):
        copy = ", and no copy of the model is here" if what == "fetch" else ""
        raise InputError(f"cannot {what} {place}: the hub cannot be reached{copy}") from None
    except Exception as error:  # of its HTTP library, which has changed before
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3")):
            raise
        raise InputError(f"cannot {what} {place}: the hub cannot be reached: {_first_line(error)}") from None


@contextlib.contextmanager
def _bars_on_terminals() -> Iterator[None]:
    from huggingface_hub import utils

    as_it_is = (sys.stderr is not None and sys.stderr.isatty()) or utils.are_progress_bars_disabled()
    if not as_it_is:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        if not as_it_is:
            utils.enable_progress_bars()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
