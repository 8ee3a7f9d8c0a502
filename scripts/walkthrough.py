# %% [markdown]
# # JointRD on digits, step by step
#
# Run it as a script (`python scripts/walkthrough.py`, about a minute on two cores) or cell by cell in an editor that
# knows `# %%`. Every step uses the functions behind the commands. WALKTHROUGH_EPOCHS (12 by default) sets its length,
# 1 is a dry run on a smaller network; the real recipe is configs/digits.py.

# %% A config: the recipe of the README, made small
import os
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp

from jointrd_jax import data
from jointrd_jax.configs import digits
from jointrd_jax.method import joint, losses, networks
from jointrd_jax.report import page
from jointrd_jax.runs import run_directory
from jointrd_jax.system import runtime
from jointrd_jax.train import gradients, loop

runtime.configure()
config = digits.get_config()
config.epochs = int(os.environ.get('WALKTHROUGH_EPOCHS', 12))
config.model.stage_sizes = (2, 2, 2, 2) if config.epochs > 1 else (1, 1)
config.eval_hybrids = True
config.log.gradients = 1
workdir = Path(tempfile.mkdtemp(prefix='walkthrough-'))

# %% The images: the whole set lies on the device, a batch is a list of indices
dataset = data.load(config)
batch = next(dataset.train_batches(0))
device_arrays, on_device = jax.device_put(dataset.device_arrays), jax.device_put(batch)
images, labels = dataset.preprocess(device_arrays, on_device, jax.random.key(0))
print(f'{dataset.train_size} training images {images.shape[1:]}, {dataset.eval_size} for evaluation, {labels[:8]}')

# %% One network, three shapes: ResNet, plain, and the hybrids between them
resnet = networks.Network(config.model.stage_sizes, width=8, num_classes=10, stem_kind='cifar')
plain = resnet.clone(shortcuts='none')
tap = plain.stage_ends[0]
first, second = (net.initialise(jax.random.key(i), dataset.image_shape) for i, net in enumerate((resnet, plain)))
hybrid = networks.hybrid(plain, resnet, block=tap)
print('shortcuts of the hybrid:', hybrid.block_shortcuts())
print('parameters:', {net.shortcuts: networks.parameter_count(v) for net, v in ((resnet, first), (plain, second))})

# %% A path is the hybrid: the plain network's map at a tap, through the ResNet's later blocks
outputs = plain.apply(second, images, taps=(tap,))
((logits, _),) = joint.residual_paths(resnet, first, outputs.taps, (tap,))
spliced = hybrid.apply(networks.splice(plain, second, first, tap), images).logits
print('largest difference:', float(jnp.abs(logits - spliced).max()))
print('its cross entropy before training:', float(losses.cross_entropy(logits, labels)))

# %% Where the gradient of the plain network comes from, before any training
method = joint.Method(taps=plain.stage_ends[:-1], average_paths=True)
parts = jax.jit(
    lambda params: gradients.mixture(
        gradients.by_origin(
            {'student': params},
            {'student': second['batch_stats']},
            images,
            labels,
            1.0,
            networks=joint.Networks(plain, resnet),
            method=method,
            teacher=joint.TeacherView(first),
        )
    )
)(second['params'])
for name, value in parts.items():
    if name.endswith('share'):
        print(f'{name}: {float(value):.2f}')

# %% Train: the ResNet first, then the plain network with it; and the plain network alone
summary = loop.run(config, workdir / 'jointrd')
config.procedure = 'plain'
alone = loop.run(config, workdir / 'plain')
top1 = {'ResNet': summary.teacher_top1, 'plain, alone': alone.last_top1, 'JointRD': summary.last_top1}
print('top-1 in percent:', top1)

# %% Use the result
run = run_directory.load(workdir / 'jointrd')
wrong = run.network.apply(run.variables, images).logits.argmax(-1) != labels
print(f'{int(wrong.sum())} of {len(labels)} augmented training images are wrong')

# %% One page that shows it all (extra [report])
page.write([workdir], workdir / 'report.html')
print(f'report: {workdir / "report.html"}')
