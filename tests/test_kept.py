"""Compositions in tests equal those of Hydra alone."""

from tests.warm import passes_in_a_new_process

COMPARED = """
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from ppll_cli.config.options import conf_dir
from tests import kept

CASES = [
    [],
    ["model=resnet32", "schedule=gpipe", "gpus=2", "optim=sgd", "optim.lr=3"],
    ["data=fashion_scenes", "model=retinanet", "local.detection_head=level"],
    ["fba=on", "recover=auto", "transport=queue", "~data.mean"],
    ["experiment=fba_edsr_div2k_x2", "tracker=wandb"],
]

def texts():
    found = []
    for overrides in CASES:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            config = compose("config", overrides, return_hydra_config=True)
        found.append(OmegaConf.to_yaml(config))
    return found

alone = texts()
with kept.configurations():
    assert [*texts(), *texts()] == alone * 2
"""


def test_kept_configurations_equal_those_of_hydra() -> None:
    assert passes_in_a_new_process(COMPARED)
