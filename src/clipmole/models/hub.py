"""Files of a Hugging Face repository: from the cache if they are there, else from the network, or one clear error.

In: a repository id and file names. Out: the cache folder that holds them, all of one commit. It does not know
what is in the files. huggingface_hub's `snapshot_download` fetches them.

huggingface_hub tries to reach a hub that does not answer for half a minute or more, and how differs between its
versions. So this module first sends one short request to see whether the hub answers.
"""

from __future__ import annotations

import glob
import re
import threading
from collections.abc import Sequence
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
    """The folder that holds `filenames` of a repository; files that are in the cache are not fetched again.

    If a branch ("main" by default) is in the cache, it is used as it is there: give a commit to get a newer one.
    `HF_HUB_OFFLINE`, `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN` and proxy variables are honoured.

    Args:
        repo_id: "owner/name".
        filenames: the files needed; a tuple stands for the first of its names that the repository has.
        optional: files that are fetched together with them, if the repository has them.
        revision: a commit, branch or tag; None: "main".
        cache_dir: the cache; None: huggingface_hub's own.

    Returns:
        The snapshot folder of one commit; its name is that commit.

    Raises:
        WeightsNotFound: a file is not in the cache and cannot be fetched.
    """
    from huggingface_hub import constants

    cache = Path(cache_dir or constants.HF_HUB_CACHE).expanduser()
    wanted = [(names,) if isinstance(names, str) else names for names in filenames]
    folders = [cached_in(repo_id, names, revision, cache) for names in wanted]
    missing = [names for names, folder in zip(wanted, folders, strict=True) if folder is None]
    found = next((folder for folder in folders if folder is not None), None)
    if found is not None and not missing:
        return found
    if offline := "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else why_unreachable(constants.ENDPOINT):
        lacking = " and ".join(" or ".join(names) for names in missing)
        raise WeightsNotFound(
            f"{at(repo_id, revision)}: {lacking} not in the cache {cache}, and {offline}; connect once, set HF_HOME or "
            "cache_dir to a cache that has it, or give a directory that holds the files"
        )
    commit = revision if found is None else found.name  # the rest comes from the commit that is already there
    return fetch(repo_id, missing, optional, commit, cache)


def at(repo_id: str, revision: str | None) -> str:
    """A repository at a revision, for messages: "owner/name@revision", with a commit cut to 12 digits."""
    return f"{repo_id}@{revision[:12]}" if revision else repo_id


def cached_in(repo_id: str, names: tuple[str, ...], revision: str | None, cache: Path) -> Path | None:
    """The snapshot folder that holds the first cached one of `names`; None if the cache has none of them."""
    from huggingface_hub import try_to_load_from_cache

    for name in names:
        try:
            path = try_to_load_from_cache(repo_id, name, cache_dir=cache, revision=revision)
        except ValueError as error:  # huggingface_hub's validation of ids
            raise WeightsNotFound(f"{repo_id!r} is not a hub id: {first_line(error)}") from error
        if isinstance(path, str):
            return Path(path).parents[len(PurePosixPath(name).parts) - 1]
    return None


def why_unreachable(endpoint: str) -> str | None:
    """Why the hub cannot be reached; None if anything answered one HEAD request within `PROBE_SECONDS`.

    The request runs in a thread, because no timeout covers a name server that does not answer.
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


def fetch(
    repo_id: str, wanted: Sequence[tuple[str, ...]], optional: Sequence[str], revision: str | None, cache: Path
) -> Path:
    """Download the files of a repository into the cache.

    The optional files come first. So if the wanted ones are in the cache later, the optional ones are there too.

    Args:
        repo_id: "owner/name".
        wanted: each of them stands for the first of its names that the repository has.
        optional: files that are left out if the repository does not have them.
        revision: a commit, branch or tag; None: "main".
        cache: the cache.

    Returns:
        The snapshot folder of the commit.

    Raises:
        WeightsNotFound: a wanted file does not exist or cannot be fetched.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    page = f"{constants.ENDPOINT}/{repo_id}"
    try:
        there = set(HfApi(endpoint=constants.ENDPOINT).list_repo_files(repo_id, revision=revision))
        chosen = [next((name for name in names if name in there), None) for names in wanted]
        for names, name in zip(wanted, chosen, strict=True):
            if name is None:
                listing = f"{page}/tree/{revision or 'main'}"
                raise WeightsNotFound(f"{at(repo_id, revision)} has no {' or '.join(names)}: see {listing}")
        folder = Path()
        for group in ([name for name in optional if name in there], [name for name in chosen if name]):
            if group:
                patterns = [glob.escape(name) for name in group]
                folder = Path(
                    snapshot_download(
                        repo_id,
                        revision=revision,
                        cache_dir=cache,
                        endpoint=constants.ENDPOINT,
                        allow_patterns=patterns,
                    )
                )
                if lacking := [name for name in group if not (folder / name).is_file()]:
                    raise FileNotFoundError(f"{', '.join(lacking)} did not arrive")
        return folder
    except WeightsNotFound:
        raise
    except GatedRepoError as error:
        reason = f"is gated: accept its terms at {page} and log in (hf auth login, or set HF_TOKEN)"
        raise WeightsNotFound(f"{at(repo_id, revision)} {reason}") from error
    except RepositoryNotFoundError as error:
        reason = f"does not exist at {constants.ENDPOINT} or is private: check the id, or log in (hf auth login)"
        raise WeightsNotFound(f"{repo_id} {reason}") from error
    except RevisionNotFoundError as error:
        raise WeightsNotFound(f"{repo_id} has no revision {revision!r}: see {page}/commits/main") from error
    except Exception as error:  # network and disk errors, whose types depend on the version
        asked = ", ".join([*(names[0] for names in wanted), *optional])
        raise WeightsNotFound(
            f"{at(repo_id, revision)}: {asked} could not be fetched into {cache} ({type(error).__name__}: "
            f"{first_line(error)}); try again, or give a directory that holds the files"
        ) from error


def root_cause(error: BaseException) -> BaseException:
    """The first error in a chain, such as that of the operating system behind three layers of an HTTP library."""
    for _ in range(10):  # a chain may be cyclic
        error = error.__cause__ or error.__context__ or error
    return error
