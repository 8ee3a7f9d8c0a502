"""Fine-tuning: a trained student or ResNet on another dataset, with a new head (the paper's transfer experiment).

Command   python -m jointrd_jax.main --config configs/finetune.py:RUN --workdir DIR
              --config.dataset.name=caltech101 --config.dataset.data_dir=DATA
          RUN is the directory of the run to start from, or a weight file such as resnet18.pth; its network is taken
          over. Any dataset will do: a prepared TFDS set, or --config.dataset.name=folder (MIT-67's indoor scenes are
          a folder).
Hardware  one GPU; time unmeasured
Accuracy  unmeasured here
"""

from jointrd_jax import config as base


def get_config(run: str = ''):
    config = base.default()
    if run:
        from jointrd_jax.deploy import convert
        from jointrd_jax.runs import run_directory, state_dicts, weights

        if state_dicts.is_weight_file(run):
            trained = convert.config_of(weights.load(run, new_head=True).network, '')
        else:
            trained = run_directory.load(run).config
        config.model.update(trained.model)
        config.model.init = 'random'  # `restore` gives the weights
        config.procedure = 'resnet' if trained.procedure in base.TRAINS_RESNET else 'plain'
    else:
        config.procedure = 'plain'
    config.restore = run
    config.restore_head = 'new'
    config.epochs = 50
    config.batch_size = 64
    config.eval_batch_size = 64
    config.optimizer.learning_rate = 0.01
    config.optimizer.warmup_fraction = 0.02
    config.optimizer.weight_decay = 1e-4
    config.dataset.name = 'caltech101'
    config.dataset.flip = True
    return config
