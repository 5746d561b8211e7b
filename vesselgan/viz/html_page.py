"""What every page of the project shares: one offline HTML document for light, dark and paper; system fonts.

The content policy forbids any fetch, should an address ever slip in: pictures are inline.
"""

import re
from html import escape

_LIGHT = """
  --paper: #fbfaf7; --card: #ffffff; --ink: #1b1f27; --soft: #5b6472; --rule: #dcd9d0; --faint: #eeece5;
  --good: #1d7a46; --good-bg: #e2f3e8; --bad: #a8321f; --bad-bg: #fbe6e1; --idle: #6b7280; --idle-bg: #eceef1;
  --warn: #8a5a00; --bar: #8d97a6; --vessel: #c8452f; --mask: #0f7fb8;
  --s0: #1f66b0; --s1: #c9640c; --s2: #2e8b57;
  --s3: #8a4fbf; --s4: #b8336a; --s5: #6b7a1e; color-scheme: light;
"""
_DARK = """
  --paper: #12151b; --card: #1a1f28; --ink: #e7e9ee; --soft: #a3adbb; --rule: #343c49; --faint: #242b36;
  --good: #7fdca4; --good-bg: #16382a; --bad: #ff9d8a; --bad-bg: #45201b; --idle: #aeb6c2; --idle-bg: #2b323d;
  --warn: #f0c060; --bar: #66717f; --vessel: #ff6e58; --mask: #5cc8ff;
  --s0: #74b3f4; --s1: #f5a75c; --s2: #7fd6a0;
  --s3: #c79bf2; --s4: #f48fb1; --s5: #c5d36b; color-scheme: dark;
"""
_BASE = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main, header, footer { max-width: 1120px; margin: 0 auto; padding: 0 28px; }
header { padding-top: 44px; padding-bottom: 8px; }
h1, h2, h3 { font-family: Charter, "Bitstream Charter", "Source Serif 4", Cambria, Georgia, serif; line-height: 1.2;
  font-weight: 650; text-wrap: balance; }
h1 { font-size: 2.15rem; margin: 0 0 6px; letter-spacing: -0.01em; }
p { margin: 8px 0; max-width: 76ch; text-wrap: pretty; }
.soft, small, .note { color: var(--soft); }
footer { padding-top: 26px; padding-bottom: 44px; color: var(--soft); font-size: 0.86rem; }
"""
_PRINT = """
  html { font-size: 12px; }
  body { font-size: 12px; background: #fff; }
  header { padding-top: 0; }
  main, header, footer { max-width: none; padding-left: 0; padding-right: 0; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
"""


def light_colours() -> dict[str, str]:
    """Name -> `#rrggbb` of the light page."""
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", _LIGHT))


def document(title: str, rules: str, body: str, *, print_rules: str = "") -> str:
    """A whole page: `body` (HTML) under the shared rules and its own (CSS), `print_rules` on paper alone."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>
:root {{{_LIGHT}}}
@media (prefers-color-scheme: dark) {{ :root {{{_DARK}}} }}
{_BASE}{rules}
@page {{ margin: 14mm; }}
@media print {{ :root {{{_LIGHT}}}
{_PRINT}{print_rules} }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
