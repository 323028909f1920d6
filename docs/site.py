"""What `mkdocs` calls while it builds the site: pages that are generated, and files from outside this folder.

- `api.md` from the public names, `command-line.md` from the commands themselves: neither can go stale.
- Pages link to files of the repository as they lie there (`../benchmarks/results/...`). Whatever is linked comes along,
  and the links are turned to where it then lies.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]+)(#[^)\s]*)?(\))")
FOREIGN = re.compile(r"[a-z]+:")


def on_files(files: Files, config: Any) -> Files:
    """Add what the pages link to outside the folder, directly or through one another."""
    waiting = [file.src_uri for file in files if file.src_uri.endswith(".md")]
    known = {file.src_uri for file in files}
    while waiting:
        page = waiting.pop()
        for target in targets(page):
            uri = place(target)
            if uri not in known and target.is_file():
                known.add(uri)
                files.append(File.generated(config, uri, abs_src_path=str(target)))
                if uri.endswith(".md"):
                    waiting.append(uri)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Generate the reference, and turn links to files outside the folder to where they lie in the site.

    A folder has no page of its own there; its name stays as text.
    """
    here = page.file.src_uri
    if here in GENERATED:
        return GENERATED[here]()

    def turned(match: re.Match[str]) -> str:
        opening, target, anchor, closing = match.groups()
        if FOREIGN.match(target):
            return match[0]
        path = resolved(here, target)
        if not path.is_file():
            return opening.lstrip("!").strip("[](") if path.exists() else match[0]
        return f"{opening}{posixpath.relpath(place(path), posixpath.dirname(here) or '.')}{anchor or ''}{closing}"

    return LINK.sub(turned, markdown)


def on_template_context(context: Any, template_name: str, **_: Any) -> Any:
    """Give `404.html` links that also work in a site that is opened as files or lies below a folder of a host."""
    if template_name == "404.html":
        context["base_url"] = "."
    return context


def targets(page: str) -> Iterator[Path]:
    """Files of the repository that a page links to."""
    for match in LINK.finditer(source(page).read_text(encoding="utf-8")):
        if not FOREIGN.match(match[2]):
            yield resolved(page, match[2])


def source(uri: str) -> Path:
    """The file of a page of the site: in this folder, or from the root of the repository."""
    return DOCS / uri if (DOCS / uri).exists() else ROOT / uri


def resolved(page: str, target: str) -> Path:
    """The file that a page's link means."""
    return Path(os.path.normpath(source(page).parent / target))


def place(path: Path) -> str:
    """Where a file of the repository lies in the site."""
    return path.relative_to(DOCS if path.is_relative_to(DOCS) else ROOT).as_posix()


def api_page() -> str:
    """Every public name with its documentation."""
    import clipmole

    functions = [name for name in clipmole.__all__ if name[0].islower()]
    classes = [name for name in clipmole.__all__ if name[0].isupper()]
    errors = [name for name in classes if name.endswith(("Error", "Dependency"))]
    lines = ["# API", "", "Everything that `from clipmole import ...` offers."]
    parts = (("Functions", functions), ("Classes", [c for c in classes if c not in errors]), ("Errors", errors))
    for title, names in parts:
        lines += ["", f"## {title}", ""]
        lines += [f"::: clipmole.{name}\n" for name in names]
    return "\n".join(lines)


def command_page() -> str:
    """Every command with its help, as the command line prints it."""
    from typer.main import get_command

    from clipmole.cli import app

    lines = [
        "# Command line", "",
        "What `clipmole COMMAND --help` prints. Exit code 0: all done. 1: some inputs failed, and the others are done. "
        "2: wrong usage, or nothing could start.",
    ]  # fmt: skip
    lines += _commands(get_command(app), None, "clipmole")
    return "\n".join(lines) + "\n"


def _commands(command: Any, above: Any, name: str) -> Iterator[str]:
    within = getattr(command, "commands", {})
    command = within.pop("INPUTS", command)  # `clipmole scan` is a command, and a group of others
    context = command.context_class(command, info_name=name.rsplit(maxsplit=1)[-1], parent=above, terminal_width=80)
    yield from ("", f"## {name}", "", "```text", command.get_help(context).rstrip(), "```")
    for key, each in within.items():
        if not each.hidden:
            yield from _commands(each, context, f"{name} {key}")


GENERATED = {"api.md": api_page, "command-line.md": command_page}
"""Pages whose committed text only says where to find them outside the site."""
