"""Who may do what with the store: one S3 policy per role, and keys for local services.

The policies in infra/s3/ are AWS's own format and name the bucket `vla-study`; SeaweedFS is
started with the same files.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POLICIES = Path(__file__).parent / "s3"
BUCKET = "vla-study"
ROLES = ("train", "evaluate", "read", "prune")
"""A file of infra/s3/ each."""
ADMIN = "admin"


def policy(role: str) -> dict[str, Any]:
    """The role's policy document."""
    return dict(json.loads((POLICIES / f"{role}.json").read_text()))


@dataclass(frozen=True)
class Access:
    """Secrets of local services, made once and readable by their owner alone."""

    folder: Path
    secrets: Mapping[str, str]

    @classmethod
    def in_folder(cls, folder: Path) -> Access:
        """Those of the folder, made if there are none yet."""
        path = folder / "secrets.json"
        if not path.exists():
            made = {name: secrets.token_hex(32) for name in (*ROLES, ADMIN, "token")}
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _write(path, json.dumps(made))
        return cls(folder, json.loads(path.read_text()))

    @property
    def token_file(self) -> Path:
        return self.folder / "ray-token"

    @property
    def s3_file(self) -> Path:
        return self.folder / "s3.json"

    @property
    def env_file(self) -> Path:
        return self.folder / "env"

    def token(self) -> str:
        return self.secrets["token"]

    def keys(self, role: str) -> dict[str, str]:
        return {"AWS_ACCESS_KEY_ID": f"vla-{role}", "AWS_SECRET_ACCESS_KEY": self.secrets[role]}

    def write(self, environment: Mapping[str, str]) -> None:
        """The files that servers and shells read."""
        _write(self.token_file, self.token())
        _write(self.s3_file, json.dumps(self.seaweedfs(), indent=1))
        lines = (f"export {name}={shlex.quote(value)}\n" for name, value in environment.items())
        _write(self.env_file, "".join(lines))

    def seaweedfs(self) -> dict[str, Any]:
        """SeaweedFS's `-s3.config`: an identity per role, bound to that role's policy."""
        roles = [self._identity(role, policyNames=[role]) for role in ROLES]
        documents = [{"name": role, "content": json.dumps(policy(role))} for role in ROLES]
        return {
            "identities": [self._identity(ADMIN, actions=["Admin"]), *roles],
            "policies": documents,
        }

    def _identity(self, role: str, **rights: Any) -> dict[str, Any]:
        keys = self.keys(role)
        pair = {
            "accessKey": keys["AWS_ACCESS_KEY_ID"],
            "secretKey": keys["AWS_SECRET_ACCESS_KEY"],
        }
        return {"name": role, "credentials": [pair], "actions": [], **rights}


def _write(path: Path, text: str) -> None:
    """Never readable by others, not even for a moment."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, 0o600)
        file.write(text)
