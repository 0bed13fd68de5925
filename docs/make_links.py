"""Have links of the built site that lead out of it, to files of the repository, lead to copies within it.

    python docs/make_links.py [SITE]

In a checkout such links work from the pages' sources. On a server there is nothing above the site. Ends with status 1
where a link leads nowhere.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

ROOT = Path(__file__).parents[1]
HREF = re.compile(r'(<a\b[^>]*?\bhref=)(?:"([^"]*)"|([^\s">]+))')


def mend(site: Path, root: Path) -> list[str]:
    """Mend the pages of a site that is built from a repository; the links that lead nowhere, with their pages."""
    nowhere: list[str] = []
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")

        def mended(found: re.Match[str], page: Path = page) -> str:
            link = found[2] or found[3] or ""
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or not parts.path or parts.path.startswith("/"):
                return found[0]
            place = Path(os.path.normpath(page.parent / unquote(parts.path)))
            if place.is_relative_to(site):
                if not (place / "index.html" if place.is_dir() else place).is_file():
                    nowhere.append(f"{page.relative_to(site)}: {link}")
                return found[0]
            # From where the page is its links are written as if the site lay beside the sources.
            source = root / os.path.relpath(place, site.parent)
            if not source.is_file():
                nowhere.append(f"{page.relative_to(site)}: {link}")
                return found[0]
            copy = site / "files" / source.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
            return f'{found[1]}"{quote(Path(os.path.relpath(copy, page.parent)).as_posix())}"'

        page.write_text(HREF.sub(mended, text), encoding="utf-8")
    return nowhere


if __name__ == "__main__":
    left = mend((Path(sys.argv[1]) if sys.argv[1:] else ROOT / "site").absolute(), ROOT)
    sys.exit("\n".join(["these links lead nowhere:", *left]) if left else 0)
