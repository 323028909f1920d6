"""Files of a Hugging Face repository: from the cache if they are there, else from the network, or one clear line.

In: a repository id and file names. Out: the cache folder that holds them, all of one commit. It does not know
what is in the files.

huggingface_hub retries an unreachable hub for half a minute and more, file by file, in a way that differs
between its versions. So the hub is asked once, shortly, before anything is fetched.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from clipmole.errors import WeightsNotFound
from clipmole.plumbing.text import first_line

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
PROBE_SECONDS = 5.0  # an answer to a HEAD request takes well under one second where there is a network


def hub_files(
    repo_id: str,
    filenames: Sequence[str | tuple[str, ...]],
    *,
    optional: Sequence[str] = (),
    revision: str | None = None,
    cache_dir: Path | None = None,
) -> Path:
    """The folder that holds `filenames` of a repository; what is in the cache is not asked for again.

    A branch ("main" by default) that is in the cache is used as it is there: give a commit for a newer one.
    `HF_HUB_OFFLINE`, `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN` and proxy variables are honoured.

    Args:
        repo_id: "owner/name".
        filenames: what must be there; a tuple stands for the first of its names that the repository has.
        optional: what is fetched too if the repository has it.
        revision: a commit, branch or tag; None: "main".
        cache_dir: None: huggingface_hub's own.

    Returns:
        The snapshot folder of one commit; its name is that commit.

    Raises:
        WeightsNotFound: the cache lacks a file and the network, the hub or the repository does not give it.
    """
    from huggingface_hub import constants

    cache = Path(cache_dir or constants.HF_HUB_CACHE).expanduser()
    wanted = [(names,) if isinstance(names, str) else names for names in filenames]
    folders = [cached_in(repo_id, names, revision, cache) for names in wanted]
    missing = [names for names, folder in zip(wanted, folders, strict=True) if not isinstance(folder, Path)]
    extra = [name for name in optional if cached_in(repo_id, (name,), revision, cache) is None]
    found = next((folder for folder in folders if isinstance(folder, Path)), None)
    if found is not None and not missing and not extra:
        return found

    offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else why_unreachable(constants.ENDPOINT)
    if offline and found is not None and not missing:
        return found
    if offline:
        lacking = " and ".join(" or ".join(names) for names in missing)
        raise WeightsNotFound(
            f"{at(repo_id, revision)}: {lacking} not in the cache {cache}, and {offline}; connect once, set HF_HOME or "
            "cache_dir to a cache that has it, or give a directory that holds the files"
        )
    if found is not None and not missing:
        with suppress(WeightsNotFound):  # a hub in trouble does not spoil what is cached
            for name in extra:
                fetch(repo_id, (name,), found.name, cache)
        return found
    commit = revision if found is None else found.name  # the rest comes from the commit that is already there
    # Optional files first: if the needed ones are in the cache, the optional ones were fetched too.
    for names in [(name,) for name in extra] + missing:
        folder = fetch(repo_id, names, commit, cache)
        if folder is not None:
            found, commit = folder, folder.name
        elif names in missing:
            page = f"{constants.ENDPOINT}/{repo_id}/tree/{revision or 'main'}"
            raise WeightsNotFound(f"{at(repo_id, revision)} has no {' or '.join(names)}: see {page}")
    assert found is not None  # something was missing, and it has been fetched
    return found


def at(repo_id: str, revision: str | None) -> str:
    """How messages name a repository at a revision, a commit cut to 12 digits."""
    return f"{repo_id}@{revision[:12]}" if revision else repo_id


def cached_in(repo_id: str, names: tuple[str, ...], revision: str | None, cache: Path) -> Path | bool | None:
    """The snapshot folder that holds the first cached one of `names`.

    False if the cache knows that the repository has none of them, None if it does not know.
    """
    from huggingface_hub import try_to_load_from_cache

    known_absent = 0
    for name in names:
        try:
            path = try_to_load_from_cache(repo_id, name, cache_dir=cache, revision=revision)
        except ValueError as error:  # huggingface_hub's validation of ids
            raise WeightsNotFound(f"{repo_id!r} is not a hub id: {first_line(error)}") from error
        if isinstance(path, str):
            return snapshot(path, name)
        known_absent += path is not None
    return False if known_absent == len(names) else None


def snapshot(path: str, name: str) -> Path:
    """The snapshot folder of the file `name` that lies at `path`."""
    return Path(path).parents[len(PurePosixPath(name).parts) - 1]


def why_unreachable(endpoint: str) -> str | None:
    """One HEAD request without retries, a few seconds at most; None if anything answered.

    It runs in a thread because a name server that does not answer is not covered by any timeout.
    """
    from huggingface_hub import get_session

    answer: list[str | None] = []

    def ask() -> None:
        try:
            get_session().head(endpoint, timeout=PROBE_SECONDS)
            answer.append(None)
        except Exception as error:  # its type depends on the version of huggingface_hub
            answer.append(f" ({first_line(root_cause(error))})")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    reason = answer[0] if answer else f" (no answer in {PROBE_SECONDS:g} s)"
    return None if reason is None else f"{endpoint} cannot be reached{reason}"


def fetch(repo_id: str, names: tuple[str, ...], revision: str | None, cache: Path) -> Path | None:
    """Download the first of `names` that the repository has; returns its snapshot folder, None if it has none."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"{constants.ENDPOINT}/{repo_id}"
    for name in names:
        try:
            path = hf_hub_download(repo_id, name, revision=revision, cache_dir=cache)
            return snapshot(path, name)
        except GatedRepoError as error:
            reason = f"is gated: accept its terms at {page} and log in (hf auth login, or set HF_TOKEN)"
            raise WeightsNotFound(f"{at(repo_id, revision)} {reason}") from error
        except RepositoryNotFoundError as error:
            reason = f"does not exist at {constants.ENDPOINT} or is private: check the id, or log in (hf auth login)"
            raise WeightsNotFound(f"{repo_id} {reason}") from error
        except RevisionNotFoundError as error:
            raise WeightsNotFound(f"{repo_id} has no revision {revision!r}: see {page}/commits/main") from error
        except Exception as error:  # network and disk errors, whose types depend on the version
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                continue
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise WeightsNotFound(
                f"{at(repo_id, revision)}: {name} could not be fetched into {cache} ({reason}); try again, or give "
                "a directory that holds the files"
            ) from error
    return None


def root_cause(error: BaseException) -> BaseException:
    """The error that started it, such as the operating system's behind three layers of an HTTP library."""
    for _ in range(10):  # a chain may be cyclic
        error = error.__cause__ or error.__context__ or error
    return error
