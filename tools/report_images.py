"""Write the pictures of a report as files, in the order of the page: those of the docs come from here.

python tools/report_images.py runs/pd-t2/report.html pictures
"""

from __future__ import annotations

import base64
import re
import sys
from pathlib import Path

from unscanned.files import write_bytes


def main(report: Path, folder: Path) -> None:
    """Write figure-01.png, figure-02.png, ...."""
    page = report.read_text(encoding="utf-8")
    images = re.findall(r"<img[^>]*src=\"data:image/png;base64,([^\"]+)\"[^>]*>", page)
    for number, content in enumerate(images, 1):
        path = folder / f"figure-{number:02}.png"
        write_bytes(path, base64.b64decode(content))
        print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
