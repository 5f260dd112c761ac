"""Keep secrets out of whatever is stored, logged or shown."""

from __future__ import annotations

import os

from envs.child import SECRET_NAME

_SHORTEST = 6
"""Shorter values ("1", "true") would black out half a text and protect nothing."""

LONGEST = 4000
"""Characters of an error's text that are stored."""


def shortened(text: str) -> str:
    """`text` scrubbed and short enough to be stored: it keeps how it begins and how it ends."""
    text, head = scrub(text), LONGEST // 4
    return text if len(text) <= LONGEST else f"{text[:head]}\n…\n{text[head + 3 - LONGEST :]}"


def scrub(text: str) -> str:
    """`text` without the values of environment variables whose names say they are secret."""
    secrets = {value for name, value in os.environ.items() if SECRET_NAME.search(name)}
    # Longest first, so that a secret which contains another one goes as a whole.
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _SHORTEST:
            text = text.replace(secret, "***")
    return text
