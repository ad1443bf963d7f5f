"""Combines a template, its styles and its modules into one web page that loads no other files."""

import re
from collections.abc import Sequence
from importlib.resources.abc import Traversable

POLICY = (
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
    "script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:\">"
)
"""With this tag, the page loads nothing over the network, even if a bug lets a text become HTML."""
ENCODING = '<meta charset="utf-8">'
IMPORT = re.compile(r'^import .* from "\./(.+)";\n', re.MULTILINE)


def inline_page(template: str, folders: Sequence[Traversable], data: str) -> str:
    """Return the template, with its linked styles and modules inserted in place of the links.

    The styles and modules are files in `folders`. `data` is JSON, which the modules read from the
    element with the id "data".
    """

    def include_style(match: re.Match[str]) -> str:
        return f"<style>\n{_read(match[1], folders)}</style>"

    def include_modules(match: re.Match[str]) -> str:
        code = "".join(_collect_modules(match[1], folders, {}).values())
        # Without this replacement, "</script>" in a text would end the script element.
        escaped = data.replace("<", "\\u003c")
        return (
            f'<script type="application/json" id="data">{escaped}</script>\n'
            f'<script type="module">\n{code}</script>'
        )

    page = template.replace(ENCODING, f"{ENCODING}\n{POLICY}", 1)
    page = re.sub(r'<link rel="stylesheet" href="(?:page/)?(.+)">', include_style, page)
    return re.sub(r'<script type="module" src="(?:page/)?(.+)"></script>', include_modules, page)


def _collect_modules(
    name: str, folders: Sequence[Traversable], found: dict[str, str]
) -> dict[str, str]:
    """Add to `found` a module and all modules that it imports, and return `found`.

    `found` maps the name of each module to the code of the module, without import lines and without
    the keyword `export`. A module comes after the modules that it imports. All modules share one
    scope in the page, so no two modules may define the same name.
    """
    code = _read(name, folders)
    for other in IMPORT.findall(code):
        if other not in found:
            _collect_modules(other, folders, found)
    found[name] = re.sub(r"^export ", "", IMPORT.sub("", code), flags=re.MULTILINE)
    return found


def _read(name: str, folders: Sequence[Traversable]) -> str:
    file = next(folder / name for folder in folders if (folder / name).is_file())
    return file.read_text("utf-8")
