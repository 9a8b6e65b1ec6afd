"""The picture of the report that docs/own_models.md shows: `recover.py` on mini_wild, opened in headless Chromium.

python -m benchmarks.screenshot
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

SHOWN = "nofodi"  # a LoRA in the middle of its tree


def main() -> None:
    """Write imgs/report.png."""
    chromium = shutil.which("chromium") or sys.exit("needs Chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        command = [sys.executable, "recover.py", "--manifest", "dataset/mini_wild.json", "--out", f"{folder}/mini_wild"]
        subprocess.run(command, check=True)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1360, "height": 820}, color_scheme="light")
        page.goto(Path(f"{folder}/mini_wild/report.html").as_uri())
        page.fill("#search", SHOWN)
        page.press("#search", "Enter")
        page.fill("#search", "")
        page.evaluate("document.activeElement.blur()")
        page.screenshot(path="imgs/report.png")
        browser.close()


if __name__ == "__main__":
    main()
