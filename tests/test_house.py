"""The rules of the house: who may import whom, and what must never shadow what."""

import ast
import platform
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from vla_platform import places

from envs import libero_install, process
from infra import services
from tests.readme_tree import README, with_tree

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {
    "vlm4vla": ROOT / "vlm4vla",
    "envs": ROOT / "envs",
    "vla_platform": ROOT / "platform" / "vla_platform",
    "jobs": ROOT / "jobs",
    "dashboards": ROOT / "dashboards",
    "infra": ROOT / "infra",
}
MAY_IMPORT = {
    "vlm4vla": {"envs"},
    "envs": set(),
    "vla_platform": {"envs"},
    "jobs": {"vla_platform", "vlm4vla", "envs"},
    "dashboards": {"vlm4vla"},
    "infra": set(),
}
FORBIDDEN = {"vlm4vla": {"ray"}, "dashboards": {"torch", "ray"}, "envs": {"ray"}}


def imported(path):
    """Top-level names that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.split(".")[0]


def violations(room, folder):
    for path in folder.rglob("*.py"):
        for name in imported(path):
            foreign = name in ROOMS and name != room and name not in MAY_IMPORT[room]
            if foreign or name in FORBIDDEN.get(room, ()):
                yield f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("room", ROOMS)
def test_imports_follow_the_arrows(room):
    assert list(violations(room, ROOMS[room])) == []


def test_envs_need_numpy_alone_at_import():
    paths = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "envs").rglob("*.py")]
    names = [".".join(path.parts) for path in paths if not path.stem.startswith("__")]
    code = f"""
import importlib, sys
before = set(sys.modules)
for name in {names}: importlib.import_module(name)
roots = {{name.split(".")[0] for name in set(sys.modules) - before}}
print(sorted(roots - set(sys.stdlib_module_names) - {{"envs", "numpy"}}))
"""
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"


def declared(*extras):
    """Names of the packages that are installed with the project and these extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *(project["optional-dependencies"][name] for name in extras)]
    return {plain(re.split(r"[\[<>=]", line)[0]) for lines in lists for line in lines}


def plain(package):
    return re.sub(r"[-_.]+", "-", package).lower()


@pytest.mark.parametrize("room", ROOMS)
def test_what_is_imported_is_declared(room):
    """What is not installed here belongs to simulators' own interpreters and to peers."""
    names = {name for path in ROOMS[room].rglob("*.py") for name in imported(path)}
    known = declared(*{"dashboards": ("dev", "app"), "vlm4vla": ("diffusion",)}.get(room, ()))
    installed = packages_distributions()
    lacking = [
        name
        for name in names - sys.stdlib_module_names - ROOMS.keys()
        if name in installed and not known & set(map(plain, installed[name]))
    ]
    assert lacking == []


@pytest.mark.parametrize(("told", "means"), [("", "/u/.vla"), ("~/x", "/u/x"), ("/y", "/y")])
def test_every_room_has_the_same_home(monkeypatch, told, means):
    monkeypatch.setenv("HOME", "/u")
    monkeypatch.setenv("VLA_HOME", told)
    monkeypatch.delenv("VLA_CACHE", raising=False)
    assert {places.home(), process.home(), services.home()} == {Path(means)}
    assert libero_install._cache() == Path(means) / "cache/libero"
    monkeypatch.setenv("VLA_CACHE", "~/scratch")
    assert places.cache() == libero_install._cache().parent == Path("/u/scratch")


def test_a_wrong_arrow_is_seen(tmp_path):
    (tmp_path / "wrong.py").write_text("def f():\n    import ray\n    from jobs import study\n")
    assert set(imported(tmp_path / "wrong.py")) == {"ray", "jobs"}


def test_platform_stays_the_standard_library():
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert Path(platform.__file__).name == "platform.py"
    code = "import platform; print(platform.system())"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == platform.system()


def test_platform_inside_a_ray_task(ray_cluster):
    import ray

    @ray.remote(num_cpus=0.1)
    def system():
        import platform

        import vla_platform

        return platform.system(), vla_platform.__name__

    assert ray.get(system.remote()) == (platform.system(), "vla_platform")


def test_readmes_tree_is_true():
    readme = README.read_text()
    assert readme == with_tree(readme), "run `make tree`"
