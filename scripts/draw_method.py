"""Draw docs/method.svg, the picture of the mixed paths: python scripts/draw_method.py [FILE]

The plain student below, its ResNet above; after each tap the student's feature map also crosses into the ResNet's
later stages. The colours follow the reader's light or dark setting.
"""

import sys
from pathlib import Path

STAGES = ('stem', 'stage 1', 'stage 2', 'stage 3', 'stage 4', 'head')
TAPPED = (1, 2, 3)  # stages after which a mixed path crosses
WIDTH, HEIGHT = 860, 330
LEFT, STEP, BOX, TALL = 92, 118, 84, 44
TEACHER_Y, STUDENT_Y = 78, 218

STYLE = """
  text { font: 14px system-ui, sans-serif; fill: #1f2328; }
  .small { font-size: 12px; fill: #59636e; }
  .box { stroke-width: 1.5; rx: 6; }
  .teacher { fill: #ddf4ff; stroke: #0969da; } .student { fill: #fff1e5; stroke: #bc4c00; }
  .line { fill: none; stroke: #59636e; stroke-width: 1.5; }
  .shortcut { fill: none; stroke: #0969da; stroke-width: 1.5; }
  .mixed { fill: none; stroke: #8250df; stroke-width: 2; stroke-dasharray: 6 4; }
  .tip { fill: #59636e; } .mixedtip { fill: #8250df; } .mixedtext { fill: #8250df; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; } .small { fill: #9198a1; }
    .teacher { fill: #0c2d4d; stroke: #4493f8; } .student { fill: #43210b; stroke: #f0883e; }
    .line { stroke: #9198a1; } .shortcut { stroke: #4493f8; } .tip { fill: #9198a1; }
    .mixed { stroke: #ab7df8; } .mixedtip { fill: #ab7df8; } .mixedtext { fill: #ab7df8; }
  }
"""


def left(stage: int) -> int:
    """Where the box of a stage begins."""
    return LEFT + STEP * stage


def arrow(x1: float, y1: float, x2: float, y2: float, kind: str = 'line', tip: str = 'tip') -> str:
    return f'<path class="{kind}" d="M{x1} {y1} L{x2} {y2}" marker-end="url(#{tip})"/>'


def row(y: int, kind: str, has_shortcuts: bool) -> list[str]:
    """One network from left to right."""
    parts = []
    for stage, name in enumerate(STAGES):
        x = left(stage)
        parts.append(f'<rect class="box {kind}" x="{x}" y="{y}" width="{BOX}" height="{TALL}"/>')
        parts.append(f'<text x="{x + BOX / 2}" y="{y + TALL / 2 + 5}" text-anchor="middle">{name}</text>')
        if stage:
            parts.append(arrow(x - STEP + BOX, y + TALL / 2, x - 2, y + TALL / 2))
        if has_shortcuts and name.startswith('stage'):  # the arc of a residual block, over the box
            arc = f'M{x + 14} {y} C{x + 14} {y - 26} {x + BOX - 14} {y - 26} {x + BOX - 14} {y - 2}'
            parts.append(f'<path class="shortcut" d="{arc}"/>')
    return parts


def picture() -> str:
    """The SVG document."""
    middle = (TEACHER_Y + TALL + STUDENT_Y) / 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="The plain '
        'student and its ResNet. After stages 1, 2 and 3 the feature map of the student also runs through the later '
        'stages of the ResNet; each of these mixed paths has its own loss.">',
        f'<style>{STYLE}</style><defs>',
        *(
            f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            f'<path class="{name}" d="M0 0 L8 4 L0 8 z"/></marker>'
            for name in ('tip', 'mixedtip')
        ),
        '</defs>',
        *row(TEACHER_Y, 'teacher', has_shortcuts=True),
        *row(STUDENT_Y, 'student', has_shortcuts=False),
        f'<text x="{LEFT}" y="{TEACHER_Y - 34}">ResNet R: frozen, thrown away after training</text>',
        f'<text x="{LEFT}" y="{STUDENT_Y + TALL + 28}">plain student P: no shortcut; this is deployed</text>',
        f'<text class="small" x="18" y="{STUDENT_Y + TALL / 2 + 4}">image x</text>',
        arrow(66, STUDENT_Y + TALL / 2, LEFT - 2, STUDENT_Y + TALL / 2),
    ]
    for number, stage in enumerate(TAPPED, 1):
        start, end = left(stage) + BOX + 8, left(stage + 1) - 10
        parts.append(arrow(start, STUDENT_Y + TALL / 2 - 4, end, TEACHER_Y + TALL / 2 + 6, 'mixed', 'mixedtip'))
        parts.append(f'<text class="mixedtext" x="{end + 10}" y="{middle + 5}">path {number}</text>')
    right = left(len(STAGES) - 1) + BOX
    for y, label in ((TEACHER_Y, 'z₁ z₂ z₃'), (STUDENT_Y, 'z')):
        parts += [
            arrow(right, y + TALL / 2, right + 22, y + TALL / 2),
            f'<text x="{right + 27}" y="{y + TALL / 2 + 5}">{label}</text>',
        ]
    loss = 'loss = cross entropy of z + m(t) · the sum of those of z₁ z₂ z₃: two gradients reach the early stages of P'
    parts += [f'<text class="small" x="{LEFT}" y="{HEIGHT - 14}">{loss}</text>', '</svg>']
    return '\n'.join(parts) + '\n'


if __name__ == '__main__':
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / 'docs' / 'method.svg'
    target.write_text(picture(), encoding='utf-8')
