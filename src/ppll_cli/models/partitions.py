"""Named partitions: how papers on local learning cut the ResNets for CIFAR-10 into modules."""

from collections.abc import Mapping, Sequence

_INFOPRO = {
    32: {
        "K2": "2.2",
        "K4": "1.3 2.2 3.1",
        "K8": "1.1 1.3 2.0 2.2 2.4 3.1 3.3",
        "K16": "1.0 1.1 1.2 1.3 1.4 2.0 2.1 2.2 2.3 2.4 3.0 3.1 3.2 3.3 3.4",
    },
    110: {
        "K2": "2.9",
        "K4": "1.12 2.8 3.4",
        "K8": "1.5 1.12 2.1 2.8 2.15 3.4 3.11",
        "K16": "1.2 1.5 1.8 1.11 1.14 1.17 2.2 2.5 2.8 2.12 2.16 3.2 3.6 3.10 3.14",
        "K2_balanced": "1.15",
        "K3_balanced": "1.10 2.3",
        "K3_balanced_stl10": "1.9 2.2",
        "K4_balanced": "1.7 1.15 2.9",
    },
}
"""For each depth and partition: the first units of modules 1, 2 ...; 2.1 means `layer2.1`.

The partitions are taken from github.com/blackfeather-wang/InfoPro-Pytorch. In a balanced partition
("InfoPro*" in the paper), all modules need about the same memory.
"""

_AUGLOCAL_DEPTHS = range(1, 7)
"""Depths d of AugLocal's auxiliary networks for which there is a named partition."""


def named_partitions(depth: int) -> Mapping[str, Sequence[str]]:
    """Return the partitions of InfoPro, AugLocal and MAN for a ResNet of this depth, by name.

    A partition lists the first unit of each module except module 0. Only depths 32 and 110 have
    partitions.
    """
    if depth not in _INFOPRO:
        return {}
    residual = [f"layer{group}.{index}" for group in (1, 2, 3) for index in range((depth - 2) // 6)]
    known = _INFOPRO[depth].items()
    infopro = {name: [f"layer{unit}" for unit in units.split()] for name, units in known}
    # As in AugLocal's code (github.com/ChenxiangMA/AugLocal), the last d + 1 residual units and the
    # head form one module. Each earlier unit is a module.
    auglocal = {f"auglocal_d{d}": residual[:-d] for d in _AUGLOCAL_DEPTHS}
    # The partitions of MAN's code (arXiv 2507.16279).
    if depth == 32:
        man = {f"man_{name}": infopro[name] for name in ("K8", "K16")}
    else:
        pairs = len(residual) - 32  # number of modules of two units
        man = {
            # Our choice: first modules of two units, then modules of one unit.
            "man_K32": residual[: 2 * pairs : 2] + residual[2 * pairs :],
            "man_K55": residual,  # our reading: each residual unit is a module
        }
    # In MAN's partitions, the stem is a separate module.
    man = {name: list(dict.fromkeys(["layer1.0", *cuts])) for name, cuts in man.items()}
    return infopro | auglocal | man
