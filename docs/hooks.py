"""What MkDocs writes itself: the table of config fields, from jointrd_jax.config.FIELDS."""

from jointrd_jax.config import FIELDS

MARK = '<!-- config fields -->'
# Of each group of fields, as in `model.depth`; '' has those without a group. A group without a heading stops the build.
HEADINGS = {
    '': 'The run', 'model': 'The network', 'mix': 'Mixed paths', 'distill': 'Distillation', 'optimizer': 'Optimiser',
    'ema': 'Averaged weights', 'dataset': 'Data', 'teacher': 'Teacher', 'nan': 'Losses that are not finite',
    'checkpoint': 'Checkpoints', 'log': 'What is shown and logged',
}  # fmt: skip


def on_page_markdown(markdown, **_):
    """Called by MkDocs for every page, by this name: the page with the table where it has the mark."""
    return markdown.replace(MARK, fields())


def fields() -> str:
    """Every field with its default, what it accepts and what it means, in Markdown."""
    groups = {}
    for name, field in FIELDS.items():
        groups.setdefault(name.rpartition('.')[0], []).append((name, field))
    lines = []
    for group, members in groups.items():
        lines += [
            f'## {HEADINGS[group]}',
            '',
            '| field | default | accepts | meaning |',
            '|---|---|---|---|',
        ]
        for name, field in members:
            default = field.default
            if isinstance(default, tuple):  # as it is written on the command line, but for the empty one
                default = ','.join(map(str, default)) or '()'
            shown = "''" if default == '' else default
            cells = f'`{shown}`', field.accepts, field.meaning
            lines.append(f'| `{name}` | ' + ' | '.join(escape(cell) for cell in cells) + ' |')
        lines.append('')
    return '\n'.join(lines)


def escape(text: str) -> str:
    return text.replace('|', '\\|').replace('*', '\\*').replace('<', '&lt;')
