"""The checksums of a checkpoint: the SHA-256 of all its files in one more (sha256sum's format), written last."""

import re
from pathlib import Path

from jointrd_jax.errors import UserError
from jointrd_jax.system import files

SEAL = 'SHA256SUMS'
META = Path('meta') / 'metadata'
PARTIAL = '.partial'


def contents(directory: Path) -> set[str]:
    """The relative names of all files in `directory` whose digests a seal holds: all but the seal itself."""
    return {
        str(path.relative_to(directory))
        for path in directory.rglob('*')
        if path.is_symlink() or not path.is_dir()
        if path != directory / SEAL
    }


def seal(directory: Path) -> None:
    """Write the digests of all files under a finished checkpoint beside them (sha256sum's format), all on disk."""
    lines = []
    for name in sorted(contents(directory)):
        files.sync(directory / name)
        lines.append(f'{files.sha256(directory / name)}  {name}\n')
    files.write_atomically(directory / SEAL, ''.join(lines))


def damage(directory: Path) -> str | None:
    """What is wrong with a checkpoint, naming the file, or None if every file is as it was written.

    Only files inside the checkpoint are opened, whatever its seal or links in it name.
    """
    try:
        if not (directory / SEAL).is_file():
            return f'{directory / SEAL} is missing'
        sealed = {}
        text = files.read_text(directory / SEAL)
        for line in text.splitlines():
            match = re.fullmatch(r'([0-9a-f]{64})  (.+)', line)
            if not match:
                return f'{directory / SEAL} is damaged'
            sealed[match[2]] = match[1]
        there = contents(directory)
        if not sealed or text != ''.join(f'{digest}  {name}\n' for name, digest in sealed.items()):
            return f'{directory / SEAL} is damaged'
        for name in sorted(there ^ sealed.keys()):
            return f'{directory / name} is ' + ('missing' if name in sealed else f'not in its {SEAL}')
        for name, digest in sealed.items():
            path = directory / name
            if path.is_symlink() or not path.is_file():
                return f'{path} is not a regular file'
            if files.sha256(path) != digest:
                return f'{path} is not what was written'
        step = files.read_json(directory / META).get('step')
        if str(step) != directory.name.removesuffix(PARTIAL):
            return f'{directory} holds another step, {step}'
    except UserError as error:
        return str(error)
    except (OSError, ValueError, AttributeError) as error:
        return f'{directory} cannot be read ({error})'
    return None
