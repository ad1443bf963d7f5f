"""Run lessons and write the page of each, with its outputs and pictures; or open them as notebooks.

python lessons/build.py               # all pages: about half an hour on two cores
python lessons/build.py 03 07         # some pages
python lessons/build.py --prose 03    # writes new prose, and keeps the outputs; runs nothing
python lessons/build.py --time 03     # measures how long lessons run; use an idle machine
python lessons/build.py --notebooks   # writes all lessons as notebooks, and starts JupyterLab
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import jupytext
from nbformat import NotebookNode

HERE = Path(__file__).parent
LESSONS = sorted(HERE.glob("[0-9][0-9]_*.py"))
TIMES = HERE / "times.json"
"""The seconds that each lesson runs without its solutions, on two idle CPU cores."""

# A solution is folded away; the outputs of a cell stand between two comments.
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


def read_lesson(lesson: Path) -> NotebookNode:
    """Return a lesson as a notebook without outputs."""
    return jupytext.read(lesson, fmt="py:percent")


def without_tests(notebook: NotebookNode) -> NotebookNode:
    """Remove the cells with the tag "test": they check the numbers in the prose."""
    shown = [cell for cell in notebook.cells if "test" not in cell.metadata.get("tags", [])]
    return NotebookNode({**notebook, "cells": shown})


def make_page(notebook: NotebookNode, lesson: Path) -> tuple[str, dict[str, bytes]]:
    """Return the Markdown page of a notebook, and its pictures by name."""
    from jinja2 import DictLoader
    from nbconvert import MarkdownExporter

    loader = DictLoader({"lesson.md.j2": TEMPLATE})
    exporter = MarkdownExporter(template_file="lesson.md.j2", extra_loaders=[loader])
    names = {"unique_key": "picture", "output_files_dir": lesson.stem}
    body, resources = exporter.from_notebook_node(without_tests(notebook), resources=names)
    title, _, rest = tidy(body).partition("\n")
    return f"{title}\n\n{describe_times(lesson)}\n{rest}", resources["outputs"]


def tidy(page: str) -> str:
    """Return a page with at most one empty line at a time, except in code."""
    parts = re.split(r"(^```.*?^```\n)", page.strip() + "\n", flags=re.DOTALL | re.MULTILINE)
    parts[::2] = [re.sub(r"\n{3,}", "\n\n", f"\n{part}")[1:] for part in parts[::2]]
    return "".join(parts)


def without_outputs(page: str) -> str:
    """Return a page without the outputs of its cells."""
    return tidy(re.sub(r"<!-- output -->\n.*?<!-- end -->\n", "", page, flags=re.DOTALL))


def reading_minutes(lesson: Path) -> float:
    """Estimate the reading time: 200 words of prose or 20 lines of code a minute.

    Solutions, tests and outputs do not count.
    """
    minutes = 0.0
    for cell in without_tests(read_lesson(lesson)).cells:
        lines = [line for line in cell.source.splitlines() if line.strip()]
        if cell.cell_type == "markdown":
            minutes += len(cell.source.split()) / 200
        elif "solution" not in cell.metadata.get("tags", []):
            minutes += len(lines) / 20
    return minutes


def describe_times(lesson: Path) -> str:
    """Return the line that stands below the title of each page."""
    line = f"Reading: {round(reading_minutes(lesson))} minutes."
    if seconds := json.loads(TIMES.read_text("utf-8")).get(lesson.stem[:2]):
        line += f" Running: {seconds} seconds on two CPU cores."
    return f"*{line}*"


def build(lesson: Path) -> None:
    """Run a lesson, and write its page and pictures beside it."""
    from nbclient import NotebookClient
    from pictures import add_dark_colours

    cells = read_lesson(lesson)
    setting = "%config InlineBackend.figure_formats = ['svg']\n%config InlineBackend.rc = {}"
    first = next(cell for cell in cells.cells if cell.cell_type == "code")
    source, first.source = first.source, f"{setting}\n{first.source}"
    for name in ("MPLBACKEND", "NANOGPT_FAST"):
        os.environ.pop(name, None)  # pages have pictures, and true numbers
    os.environ.update(NANOGPT_SOLUTIONS="1", NANOGPT_RECORD="1")
    place = {"metadata": {"path": HERE}}
    NotebookClient(cells, timeout=3600, resources=place, coalesce_streams=True).execute()
    first.source = source
    body, pictures = make_page(cells, lesson)
    shutil.rmtree(HERE / lesson.stem, ignore_errors=True)
    for name, raw in pictures.items():
        (HERE / name).parent.mkdir(exist_ok=True)
        (HERE / name).write_text(add_dark_colours(raw.decode()), "utf-8")
    lesson.with_suffix(".md").write_text(body, encoding="utf-8")


def write_prose(lesson: Path) -> None:
    """Write the page of a lesson with the outputs that it has; exit if other code has outputs."""
    pattern = r"^```python\n(.*?)^```\n(?:\n(<!-- output -->\n.*?<!-- end -->\n))?"
    file = lesson.with_suffix(".md")
    cells = re.findall(pattern, file.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    outputs = {ast.dump(ast.parse(source)): output for source, output in cells}

    def add_output(cell: re.Match[str]) -> str:
        output = outputs.get(ast.dump(ast.parse(cell[1])))
        if output is None:
            sys.exit(f"not in {file.name}, so build the page without --prose:\n{cell[1]}")
        return f"{cell[0]}\n{output}" if output else cell[0]

    page, _ = make_page(read_lesson(lesson), lesson)
    new = re.sub(pattern, add_output, page, flags=re.DOTALL | re.MULTILINE)
    file.write_text(tidy(new), encoding="utf-8")


def measure_times(lessons: Iterable[Path]) -> None:
    """Run each lesson without its solutions, and record the seconds. Pages must be built again."""
    times = json.loads(TIMES.read_text("utf-8"))
    for lesson in lessons:
        environment = {**os.environ, "MPLBACKEND": "agg"}
        start = time.perf_counter()
        subprocess.run([sys.executable, lesson], env=environment, check=True, capture_output=True)
        times[lesson.stem[:2]] = round(time.perf_counter() - start)
        print(lesson.name, times[lesson.stem[:2]], flush=True)
    TIMES.write_text(json.dumps(times, indent=1) + "\n", "utf-8")


def make_notebook(lesson: Path) -> NotebookNode:
    """Return a lesson as a notebook for readers: without tests, and with solutions folded away."""
    notebook = without_tests(read_lesson(lesson))
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    notebook.metadata["kernelspec"] = kernel  # otherwise JupyterLab asks for one
    for cell in notebook.cells:
        if "solution" in cell.metadata.get("tags", []):
            _, _, code = cell.source.partition("\n")
            cell.source = f"if SOLUTIONS:  # solution; set SOLUTIONS = True to run it\n{code}"
            cell.metadata["jupyter"] = {"source_hidden": True}
    return notebook


def open_notebooks(lessons: list[Path]) -> None:
    """Write each lesson as a notebook beside its script, and open the first in JupyterLab."""
    from jupyterlab.labapp import main as start_jupyterlab

    files = [lesson.with_suffix(".ipynb") for lesson in lessons]
    for lesson, file in zip(lessons, files, strict=True):
        if not file.exists():  # keep the reader's changes
            jupytext.write(make_notebook(lesson), file)
    start_jupyterlab([str(files[0])])


def main(arguments: list[str]) -> None:
    """Do what the arguments ask for: an option, and numbers of lessons (by default all)."""
    numbers = [argument for argument in arguments if not argument.startswith("--")]
    lessons = [lesson for lesson in LESSONS if not numbers or lesson.stem[:2] in numbers]
    if "--notebooks" in arguments:
        open_notebooks(lessons)
    elif "--time" in arguments:
        measure_times(lessons)
    else:
        for lesson in lessons:
            print(lesson.name, flush=True)
            (write_prose if "--prose" in arguments else build)(lesson)


if __name__ == "__main__":
    main(sys.argv[1:])
