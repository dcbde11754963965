"""Pictures of every page of a running console, wide and as on a phone.

`python -m tests.screenshots URL FOLDER [TOKEN]`; URL and TOKEN are what `haypile up` and `haypile demo` print.
"""

import sys
import time
from pathlib import Path

from tests.support.chromium import running_chromium

PAGES = {
    "flow": "/",
    "buffer": "/buffer",
    "training": "/training",
    "models": "/models",
    "dead-letters": "/dead-letters",
}
SIZES = {"wide": (1280, 900), "phone": (390, 844)}
SETTLE_S = 4.0
"""A page fills itself once it is connected."""


def main(url: str, folder: Path, token: str | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with running_chromium() as browser:
        for size, (width, height) in SIZES.items():
            context = browser.new_context(viewport={"width": width, "height": height}, base_url=url)
            page = context.new_page()
            if token is not None:
                page.goto("/login")
                page.fill("#token", token)
                page.click("button")
            for name, path in PAGES.items():
                page.goto(path)
                time.sleep(SETTLE_S)
                page.screenshot(path=folder / f"{name}-{size}.png", full_page=True)
                print(folder / f"{name}-{size}.png")
            context.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None)
