"""README's tree, made of the first line of every file's own description: `make tree`."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
FOLDERS = {
    "vlm4vla": "the science; never imports Ray",
    "envs": "the simulators; numpy alone at import",
    "platform": "the Ray layer",
    "jobs": "one short script per question",
    "dashboards": "what people look at",
    "infra": "how it gets onto machines",
}
TESTS = "tests/  mirrors the folders above; bench/ holds the benchmarks"
COMMENTS = {".sh": "#", ".yaml": "#", ".yml": "#", ".sbatch": "#", ".c": "//", ".Dockerfile": "#"}
WIDTH = 38
BEGIN, END = "<!-- tree: `make tree` writes it -->\n```\n", "```\n<!-- end of tree -->"


def tree() -> str:
    files = {
        folder: sorted(path for path in (ROOT / folder).rglob("*") if path.is_file())
        for folder in FOLDERS
    }
    lines = []
    for folder, what in FOLDERS.items():
        lines.append(f"{folder}/  {what}")
        found = ((path.relative_to(ROOT / folder), path) for path in files[folder])
        lines += [line for name, path in found if (line := _line(str(name), path))]
    return "\n".join([*lines, TESTS])


def _line(name: str, path: Path) -> str | None:
    what = _first_line(path)
    return None if what is None else f"  {name:<{WIDTH}} {what}"


def _first_line(path: Path) -> str | None:
    """What a file says of itself; None for those that hold data or nothing."""
    text = path.read_text(errors="ignore") if path.suffix in {".py", *COMMENTS} else ""
    if path.suffix == ".py":
        doc = ast.get_docstring(ast.parse(text)) if path.name != "__init__.py" else None
        return doc.splitlines()[0] if doc else None
    mark = COMMENTS.get(path.suffix)
    if mark is None:
        return None
    said = [line for line in text.splitlines()[:3] if re.match(rf"{mark} \w", line)]
    return said[0].removeprefix(mark).strip() if said else None


def with_tree(readme: str) -> str:
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{tree()}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(with_tree(README.read_text()))
