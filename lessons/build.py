"""Run lessons and write the page of each, with what it printed and drew.

python lessons/build.py          # all: about a quarter of an hour on two cores
python lessons/build.py 03 07    # some
"""

import os
import re
import shutil
import sys
from pathlib import Path

import jupytext
from jinja2 import DictLoader
from nbclient import NotebookClient
from nbconvert import MarkdownExporter
from nbformat import NotebookNode

HERE = Path(__file__).parent
LESSONS = sorted(HERE.glob("[0-9][0-9]_*.py"))

# A solution is folded away; what a cell printed and drew stands between two comments.
TEMPLATE = """
{%- extends 'markdown/index.md.j2' -%}
{%- block input -%}
{% if 'solution' in cell.metadata.tags %}<details><summary>Solution</summary>
{% endif %}
```python
{{ cell.source }}
```
{% if cell.outputs %}
<!-- output -->
{% endif %}
{%- endblock input -%}
{%- block outputs -%}
{{ super() }}
<!-- end -->
{% endblock outputs -%}
{%- block codecell -%}
{{ super() }}
{%- if 'solution' in cell.metadata.tags %}
</details>
{% endif %}
{%- endblock codecell -%}
{%- block stream -%}
```text
{{ output.text.rstrip() }}
```
{%- endblock stream -%}
{%- block data_text scoped -%}
```text
{{ output.data['text/plain'].rstrip() }}
```
{%- endblock data_text -%}
{%- block data_svg -%}
![{{ cell.metadata.alt }}]({{ output.metadata.filenames['image/svg+xml'] | path2url }})
{%- endblock data_svg -%}
"""


def notebook(lesson: Path) -> NotebookNode:
    """A lesson as a notebook that nobody has run."""
    return jupytext.read(lesson, fmt="py:percent")


def page(notebook: NotebookNode, name: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures, in a folder called name."""
    loader = DictLoader({"lesson.md.j2": TEMPLATE})
    exporter = MarkdownExporter(template_file="lesson.md.j2", extra_loaders=[loader])
    body, resources = exporter.from_notebook_node(
        notebook, resources={"unique_key": "picture", "output_files_dir": name}
    )
    return tidied(body), resources["outputs"]


def tidied(page: str) -> str:
    """A page without more than one empty line at a time, but for those in code."""
    parts = re.split(r"(^```.*?^```\n)", page.strip() + "\n", flags=re.DOTALL | re.MULTILINE)
    parts[::2] = [re.sub(r"\n{3,}", "\n\n", f"\n{part}")[1:] for part in parts[::2]]
    return "".join(parts)


def without_outputs(page: str) -> str:
    """A page as it would be if nothing had been run."""
    return tidied(re.sub(r"<!-- output -->\n.*?<!-- end -->\n", "", page, flags=re.DOTALL))


def build(lesson: Path) -> None:
    """Run a lesson, and write its page and pictures beside it."""
    cells = notebook(lesson)
    setting = "%config InlineBackend.figure_formats = ['svg']\n%config InlineBackend.rc = {}"
    first = next(cell for cell in cells.cells if cell.cell_type == "code")
    source, first.source = first.source, f"{setting}\n{first.source}"
    for name in ("MPLBACKEND", "NANOGPT_FAST"):
        os.environ.pop(name, None)  # pages have pictures, and true numbers
    place = {"metadata": {"path": HERE}}
    NotebookClient(cells, timeout=3600, resources=place, coalesce_streams=True).execute()
    first.source = source
    body, pictures = page(cells, lesson.stem)
    shutil.rmtree(HERE / lesson.stem, ignore_errors=True)
    for name, raw in pictures.items():
        (HERE / name).parent.mkdir(exist_ok=True)
        (HERE / name).write_bytes(raw)
    lesson.with_suffix(".md").write_text(body, encoding="utf-8")


def main() -> None:
    """Build the lessons that were asked for."""
    asked = sys.argv[1:]
    for lesson in LESSONS:
        if not asked or lesson.stem[:2] in asked:
            print(lesson.name, flush=True)
            build(lesson)


if __name__ == "__main__":
    main()
