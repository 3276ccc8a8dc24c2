"""Write the repository's new address wherever a tracked file has the old one, which is the one in pyproject.toml.

    python book/_tools/repository.py https://github.com/OWNER/NAME

The site's address on GitHub Pages follows. What is history, the changelog and the records, stays as it is.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
OWNER = r"[a-zA-Z\d]+(?:-[a-zA-Z\d]+)*"
NAME = r"[\w.-]*\w(?<!\.git)(?<!\.github\.io)"
ADDRESS = re.compile(rf"https://github\.com/{OWNER}/{NAME}", re.ASCII)
HISTORY = (":!CHANGELOG.md", ":!companion/results")


def forms(address: str) -> tuple[str, str]:
    """Return how files write an address: OWNER/NAME, after whatever host, and the site's."""
    owner, name = address.split("/")[-2:]
    return f"{owner}/{name}", f"{owner.lower()}.github.io/{name}"


def moved(text: bytes, old: str, new: str) -> bytes:
    """Return a text with another address, in both its forms, and no other name that holds an old one."""
    for before, after in zip(forms(old), forms(new), strict=True):
        whole = rf"(?<![\w.-]){re.escape(before)}(?![\w-]|\.(?!git\b)\w)"
        text = re.sub(whole.encode(), after.encode(), text)
    return text


def main(new: str) -> int:
    """Rewrite the tracked files, and return the exit status."""
    if not ADDRESS.fullmatch(new):
        print(f"repo-url: URL=https://github.com/OWNER/NAME, not {new!r}", file=sys.stderr)
        return 2
    old = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]["Repository"]
    listed = subprocess.run(["git", "ls-files", "-z", "--", *HISTORY], cwd=ROOT, check=True, capture_output=True)
    changed = 0
    for name in listed.stdout.decode().split("\0")[:-1]:
        path = ROOT / name
        before = path.read_bytes() if path.is_file() else b""
        if (after := moved(before, old, new)) != before:
            path.write_bytes(after)
            print(name)
            changed += 1
    print(f"{changed} files changed from {old} to {new}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
