"""inline_page() makes a page that contains its styles and modules, and loads no files."""

import re
from pathlib import Path

import pytest

from nanogpt.reports.inlining import inline_page

TEMPLATE = """<meta charset="utf-8">
<link rel="stylesheet" href="page/a.css">
<script type="module" src="page/main.js"></script>
"""


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two folders with files; both main.js and b.js import c.js."""
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, name, text in (
        (one, "main.js", 'import { b } from "./b.js";\nimport { c } from "./c.js";\nb(c);\n'),
        (two, "b.js", 'import { c } from "./c.js";\nexport const b = x => x + c;\n'),
        (two, "c.js", "export const c = 1;\nexport class D {}\n"),
        (two, "a.css", "p { margin: 0 }\n"),
    ):
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text, "utf-8", newline="\n")
    return [one, two]


def test_each_module_follows_those_that_it_imports(folders: list[Path]) -> None:
    page = inline_page(TEMPLATE, folders, "null")
    code = re.search(r'<script type="module">\n(.*)</script>', page, re.DOTALL)
    assert code is not None
    assert code[1] == "const c = 1;\nclass D {}\nconst b = x => x + c;\nb(c);\n"
    assert "<style>\np { margin: 0 }\n</style>" in page
    assert "src=" not in page
    assert "href=" not in page
    assert "default-src 'none'" in page


def test_data_cannot_end_its_element(folders: list[Path]) -> None:
    page = inline_page(TEMPLATE, folders, r'"</script><img onerror=x> \1"')
    assert r'id="data">"\u003c/script>\u003cimg onerror=x> \1"</script>' in page
    assert page.count("</script>") == 2
