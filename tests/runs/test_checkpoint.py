import numpy as np
import pytest

from jointrd_jax.errors import UserError
from jointrd_jax.runs.checkpoint import Checkpoints
from jointrd_jax.runs.seal import SEAL


def written(path, steps, keep=2):
    checkpoints = Checkpoints(path, keep)
    for step in steps:
        checkpoints.save(step, {'student': {'w': np.full(3, float(step))}}, {'step': step})
    checkpoints.close()
    return checkpoints


def test_newest_are_kept_and_restored(tmp_path):
    checkpoints = written(tmp_path, [10, 20, 30])
    assert checkpoints.steps() == [30, 20] and checkpoints.newest_intact() == 30
    assert checkpoints.meta(30) == {'step': 30}
    restored = checkpoints.restore(30, {'student': {'w': np.zeros(3)}})
    np.testing.assert_array_equal(restored['student']['w'], [30.0] * 3)


def test_no_checkpoint_is_none(tmp_path):
    assert Checkpoints(tmp_path).newest_intact() is None


@pytest.mark.parametrize('damage', ['delete', 'truncate', 'empty', 'flip'])
def test_damage_is_seen_in_every_file(tmp_path, damage):
    checkpoints = written(tmp_path, [10, 20])
    said = []
    checkpoints.say = said.append
    files = [path for path in (checkpoints.directory / '20').rglob('*') if path.is_file()]
    assert len(files) > 5
    for path in files:
        content = path.read_bytes()
        if damage == 'delete':
            path.unlink()
        elif damage == 'flip' and content:
            path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        elif content:
            path.write_bytes(content[: len(content) // 2] if damage == 'truncate' else b'')
        else:
            continue  # an empty file cannot be shortened or flipped
        assert checkpoints.newest_intact() == 10, path
        assert said and ('20' in said[-1] and 'going back to the checkpoint of step 10' in said[-1])
        path.write_bytes(content)
    assert checkpoints.newest_intact() == 20


def test_nothing_intact_names_the_file(tmp_path):
    checkpoints = written(tmp_path, [10])
    path = checkpoints.directory / '10' / 'meta' / 'metadata'
    path.write_text('{}')
    with pytest.raises(UserError, match=r'no intact checkpoint.*meta/metadata is not what was written'):
        checkpoints.newest_intact()


def test_unfinished_checkpoints_do_not_count_and_go(tmp_path):
    checkpoints = written(tmp_path, [10])
    partial = checkpoints.directory / '20.partial'
    partial.mkdir()
    (partial / 'half').write_text('x')
    assert checkpoints.newest_intact() == 10
    again = Checkpoints(tmp_path, keep=2)
    again.drop_after(10)
    again.close()
    assert not partial.exists() and (checkpoints.directory / '10' / SEAL).exists()
