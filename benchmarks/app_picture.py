"""Take a picture of the page of ``linvit app`` with a sample, in headless Chromium.

python benchmarks/app_picture.py docs/app.png runs/demo
"""

import argparse
import io
import shutil
import threading
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from linvit.app.server import make_server
from linvit.app.viewer import Models
from linvit.files import atomic_write


def main() -> None:
    """Serve the models, open the page, take the sample, and photograph it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the PNG to write")
    parser.add_argument("models", nargs="+", help="one or two models")
    parser.add_argument("--sample", default="digit", help="which sample (digit)")
    parser.add_argument("--width", type=int, default=1000, help="of the window, in pixels (1000)")
    args = parser.parse_args()
    server = make_server(Models(args.models, "cpu"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": args.width, "height": 800})
        page.goto(f"http://127.0.0.1:{server.server_address[1]}/")
        page.get_by_role("button", name=args.sample).click()
        page.locator("#status", has_text="done").wait_for(timeout=120_000)
        page.click("#measure")
        page.locator("#status", has_text="measured").wait_for(timeout=120_000)
        content = page.screenshot(full_page=True)
        browser.close()
    server.shutdown()
    with atomic_write(args.out) as temporary:
        Image.open(io.BytesIO(content)).convert("RGB").quantize(256).save(temporary, format="PNG", optimize=True)


if __name__ == "__main__":
    main()
