"""A report as a browser shows it: python scripts/screenshot_report.py REPORT.html [DIR]

Loads it in headless Chromium (Debian's package `chromium`) at the width of a desktop and of a phone, light and
dark, writes DIR/report_WIDTH_SCHEME.png of the page as far as Chromium can paint (without DIR: beside the report; a
line says if it was cut). Ends with status 1 if there is anything on the console, such as an error or a request that
the page's own policy (no network) stopped, or if the page is wider than its window.
"""

import itertools
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

WIDTHS = (1280, 390)
SCHEMES = {'light': 1, 'dark': 0}  # as Blink numbers them
MAX_HEIGHT = 16_000  # pixels; what Chromium can paint
PROBE = """<script>
const page = document.documentElement; console.log('size', innerWidth, page.scrollWidth, page.scrollHeight);
for (const part of document.querySelectorAll('details')) part.open = true;
console.log('opened', innerWidth, page.scrollWidth, page.scrollHeight);
</script></body>"""


def load(chromium: str, page: Path, width: int, height: int, scheme: str, picture: Path) -> list[str]:
    """What the page says on the console. It lies in a frame: Chromium makes no window as narrow as a phone's."""
    frame = page.with_name('frame.html')
    frame.write_text(
        f'<!doctype html><body style="margin:0"><iframe src="{page.name}" width="{width}" height="{height}" '
        'style="border:0"></iframe>'
    )
    options = ['--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', '--enable-logging=stderr']
    options.append(f'--blink-settings=preferredColorScheme={SCHEMES[scheme]}')
    places = [f'--user-data-dir={page.parent / "profile"}', f'--window-size={width},{height}']
    done = subprocess.run(
        [chromium, *options, *places, f'--screenshot={picture}', frame.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return re.findall(r'CONSOLE[^\]]*\] "(.*)", source:', done.stderr)


def check(report: Path, directory: Path, chromium: str) -> list[str]:
    """Write the pictures, and return what is wrong with the page."""
    problems = []
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / 'page.html'
        page.write_text(report.read_text().replace('</body>', PROBE))
        for width, scheme in itertools.product(WIDTHS, SCHEMES):
            picture = directory / f'report_{width}_{scheme}.png'
            height = 1000
            for _ in range(2):  # once for the height, once for the picture of it all
                said = load(chromium, page, width, height, scheme, picture)
                sizes = [line.split() for line in said if line.startswith(('size ', 'opened '))]
                height = min(int(sizes[-1][3]), MAX_HEIGHT)
            problems += [f'{width} pixels: {line}' for line in said if line.split() not in sizes]
            widest = max(int(size[2]) for size in sizes)
            problems += [f'{width} pixels: the page is {widest} wide'] if widest > width else []
            cut = '' if int(sizes[-1][3]) <= height else f', cut: the page is {sizes[-1][3]} high'
            print(f'{picture}: {width} x {height}{cut}')
    return problems


def main(report: str, directory: str = '') -> None:
    chromium = shutil.which('chromium') or sys.exit('no chromium on PATH; apt-get install chromium')
    problems = check(Path(report), Path(directory) if directory else Path(report).parent, chromium)
    sys.exit('\n'.join(problems) if problems else None)


if __name__ == '__main__':
    main(*sys.argv[1:])
