"""Write containers/requirements.lock: the exact versions that the image installs, resolved by pip from pyproject.toml.

make lock
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "containers" / "requirements.lock"
HEAD = "# Made from pyproject.toml by `make lock`; the image installs exactly these.\n"


def resolve() -> list[str]:
    """``name==version`` of every package that the project needs, without local labels such as +cu130."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        options = ["--dry-run", "--ignore-installed", "--quiet", "--report", str(report)]
        subprocess.run([sys.executable, "-m", "pip", "install", *options, str(ROOT)], check=True)
        found = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    return sorted(f"{m['name']}=={m['version'].partition('+')[0]}" for m in found if m["name"] != "nme")


if __name__ == "__main__":
    LOCK.write_text(HEAD + "\n".join(resolve()) + "\n")
